# needs nodes: reads the API server's audit log.
# The mesh's accounts are allowed what they ask for, and are granted little that nobody asks for.
audit() { cluster exec cp cat /var/log/lab/audit.log; }
refused() { audit | grep '"code":403' | grep -o '"user":{"username":"[^"]*"\|"verb":"[^"]*"\|"requestURI":"[^"?]*' | paste - - - | sort | uniq -c; }
check "no request of the mesh was ever forbidden" silent refused
asked() { audit | sed -E 's/.*"verb":"([^"]*)".*"username":"[^"]*:([^":]*)".*"resource":"([^"]*)".*/\2 \1 \3/' | sort | uniq -c | sort -rn; }
asked | head -n 40 | sed 's/^/     /'
