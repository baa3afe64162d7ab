# needs nodes: reads the API server's audit log.
# The mesh's accounts are allowed what they ask for; what they are granted and never asked for is listed.
audit() { cluster exec cp sh -c 'cat /var/log/lab/audit*.log'; }
# "ACCOUNT VERB RESOURCE[.GROUP][/SUBRESOURCE]" of each request, with its answer's code
requests() {
	audit | awk '
		function value(s, key,   at) { at = index(s, "\"" key "\":\""); if (!at) return ""; s = substr(s, at + length(key) + 4); return substr(s, 1, index(s, "\"") - 1) }
		{
			at = index($0, "\"objectRef\":{"); if (!at) next
			of = substr($0, at); of = substr(of, 1, index(of, "}")); group = value(of, "apiGroup"); sub_ = value(of, "subresource")
			account = value($0, "username"); sub(/.*:/, "", account)
			match($0, /"code":[0-9]+/); code = substr($0, RSTART + 7, RLENGTH - 7)
			print account, value($0, "verb"), value(of, "resource") (group == "" ? "" : "." group) (sub_ == "" ? "" : "/" sub_), code
		}' | sort | uniq -c
}
refused() { requests | awk '$5 == 403 || $5 == 401'; }
check "no request of the mesh was ever refused for its rights" silent refused
check "the log is there: the controller asked for something" says 'stillmesh-controller [a-z]+ ' requests
requests | awk '{ print $2, $3, $4 }' | sort -u > "$WORK/asked"
for account in stillmesh-controller stillmesh-cni ztunnel; do
	k auth can-i --list --as="system:serviceaccount:$SYSTEM:$account" -n "$SYSTEM" | sed -nE "s/^([a-z][^ ]*) .*\[([^]]*)\]$/\1 \2/p" |
		grep -v ^selfsubject | while read -r resource verbs; do for v in $verbs; do echo "$account $v $resource"; done; done
done | sort -u > "$WORK/granted"
log "granted and not asked for: $(comm -13 "$WORK/asked" "$WORK/granted" | paste -sd, | sed 's/,/, /g')"
