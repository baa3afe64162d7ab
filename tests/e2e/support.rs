//! Starts meshes and runs commands against them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scene::is_ready;

/// The command under test.
pub const STILLMESH: &str = env!("CARGO_BIN_EXE_stillmesh");

/// How long anything may take before the test calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The program that runs in pods: built beside the command by `cargo test`.
pub fn peer() -> PathBuf {
    let path = Path::new(STILLMESH).parent().expect("a folder").join("examples/peer");
    assert!(path.exists(), "{} is missing: run the tests with `cargo test`, which builds it", path.display());
    path
}

/// A running mesh. It is taken down when dropped.
pub struct Mesh {
    pub name: String,
    pub dir: tempfile::TempDir,
    up: Mutex<Child>,
    log: PathBuf,
}

impl Mesh {
    /// Starts a mesh on these files (name and content) and waits until every pod is ready.
    pub fn start(files: &[(&str, &str)]) -> Self {
        let mesh = Self::launch(files);
        let waited = mesh.command(&["status", "--wait", "120"]);
        assert!(waited.status.success(), "not ready:\n{}\nup said:\n{}", text(&waited), mesh.said());
        mesh
    }

    /// Starts a mesh without waiting.
    pub fn launch(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("up.log");
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).expect("a folder");
        for (file, content) in files {
            write(&manifests.join(file), content);
        }
        let out = fs::File::create(&log).expect("a log file");
        let up = Command::new(STILLMESH)
            .args(["up", manifests.to_str().expect("a path"), "--name", &name, "--nodes", "2"])
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("a descriptor"))
            .stderr(out)
            .spawn()
            .expect("stillmesh starts");
        Self { name, dir, up: Mutex::new(up), log }
    }

    /// Process id of `stillmesh up`.
    pub fn pid(&self) -> u32 {
        self.up.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// Waits for the end of `stillmesh up`.
    pub fn wait(&self) -> Option<i32> {
        let mut up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = up.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < end, "up does not end:\n{}", self.said());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `up` printed so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Writes a manifest, atomically as editors do.
    pub fn apply(&self, file: &str, content: &str) {
        write(&self.dir.path().join("manifests").join(file), content);
    }

    /// Deletes a manifest.
    pub fn delete(&self, file: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(file)).expect("the file is there");
    }

    /// Runs `stillmesh ARGUMENTS --name …`. Options go before a `--` among the arguments.
    pub fn command(&self, arguments: &[&str]) -> Output {
        run(&mut self.prepare(arguments))
    }

    /// The command, not started.
    pub fn prepare(&self, arguments: &[&str]) -> Command {
        let at = arguments.iter().position(|argument| *argument == "--").unwrap_or(arguments.len());
        let mut command = Command::new(STILLMESH);
        command.args(&arguments[..at]).args(["--name", &self.name]).args(&arguments[at..]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in a pod.
    pub fn exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> Output {
        let mut arguments = vec!["exec", "-n", namespace, pod, "--"];
        arguments.extend(argv);
        self.command(&arguments)
    }

    /// Runs the peer's client in a pod.
    pub fn peer(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Output {
        let peer = peer();
        let mut argv = vec![peer.to_str().expect("a path"), "client"];
        argv.extend(arguments);
        self.exec(namespace, pod, &argv)
    }

    /// Runs the peer's client in a pod; it must succeed. Its JSON line.
    pub fn ask(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Value {
        let output = self.peer(namespace, pod, arguments);
        assert!(output.status.success(), "{arguments:?} from {namespace}/{pod}:\n{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Objects of a kind in a namespace, as JSON.
    pub fn get(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let output = self.command(&["get", kind, "-n", namespace, "-o", "json"]);
        assert!(output.status.success(), "get {kind}:\n{}", text(&output));
        let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// One pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Value> {
        self.get("pods", namespace).into_iter().find(|pod| pod["metadata"]["name"] == name)
    }

    /// A pod's addresses, IPv4 first.
    pub fn ips(&self, namespace: &str, name: &str) -> Vec<String> {
        let pod = self.pod(namespace, name).unwrap_or_else(|| panic!("no pod {namespace}/{name}"));
        let ips = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        ips.iter().filter_map(|ip| ip["ip"].as_str()).map(str::to_owned).collect()
    }

    /// Whether every pod of a namespace is captured.
    pub fn captured(&self, namespace: &str) -> bool {
        let pods = self.get("pods", namespace);
        let captured = |pod: &Value| pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled";
        !pods.is_empty() && pods.iter().all(captured)
    }

    /// Waits until so many pods of a namespace are there, ready and captured. Waypoints count, and need not be captured; what
    /// other tests do to pods of theirs does not matter.
    pub fn settled(&self, namespace: &str, pods: usize) {
        let is_in = |pod: &Value| {
            let metadata = &pod["metadata"];
            metadata["annotations"]["ambient.istio.io/redirection"] == "enabled"
                || !metadata["labels"]["gateway.networking.k8s.io/gateway-name"].is_null()
        };
        wait(&format!("{pods} pods of {namespace} are ready and captured"), || {
            let all = self.get("pods", namespace);
            all.len() == pods && all.iter().all(|pod| is_in(pod) && is_ready(pod))
        });
    }

    /// Writes or ends an order by `stillmesh KIND`; it must be carried out. The order.
    pub fn order(&self, kind: &str, arguments: &[&str]) -> Value {
        let output = self.command(&[&[kind], arguments, &["--timeout", "10m", "-o", "json"]].concat());
        assert!(output.status.success(), "{kind} {arguments:?}:\n{}", text(&output));
        let mut list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        list["items"][0].take()
    }

    /// An order of a namespace, as it is now.
    pub fn ordered(&self, kind: &str, namespace: &str, order: &Value) -> Option<Value> {
        let output = self.command(&[kind, "--list", namespace, "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let is_it = |one: &&Value| one["metadata"]["name"] == order["metadata"]["name"];
        list["items"].as_array().into_iter().flatten().find(is_it).cloned()
    }

    /// A connection of a pod by which a word is said again and again, until somebody ends it.
    pub fn hold(&self, namespace: &str, pod: &str, target: &str, word: &str) -> Child {
        self.holding(namespace, pod, target, word, Stdio::null())
    }

    /// Likewise; each time that the word was answered it writes a line there.
    pub fn holding(&self, namespace: &str, pod: &str, target: &str, word: &str, answers: Stdio) -> Child {
        let peer = peer();
        let mut arguments = vec!["exec", "-n", namespace, pod, "--", peer.to_str().expect("a path"), "client", "hold"];
        arguments.extend([target, "100000", "20", word]);
        self.prepare(&arguments).stdout(answers).stderr(Stdio::null()).spawn().expect("it starts")
    }

    /// What a container printed.
    pub fn logs(&self, namespace: &str, pod: &str) -> String {
        let output = self.command(&["logs", "-n", namespace, pod]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let mut up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        if up.try_wait().ok().flatten().is_none() {
            signal(up.id(), "INT");
            let end = Instant::now() + Duration::from_secs(40);
            while up.try_wait().ok().flatten().is_none() && Instant::now() < end {
                thread::sleep(Duration::from_millis(50));
            }
            let _ = up.kill();
            let _ = up.wait();
        }
        if thread::panicking() {
            eprintln!("--- up of {} said:\n{}", self.name, self.said());
        }
    }
}

/// The mesh that most tests share. It lives as long as somebody holds it.
pub fn shared() -> Arc<Mesh> {
    static SHARED: Mutex<Weak<Mesh>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mesh) = shared.upgrade() {
        return mesh;
    }
    let mesh = Arc::new(Mesh::start(&[("all.yaml", &crate::mesh::manifests())]));
    wait("the namespace is captured", || mesh.captured("mesh"));
    *shared = Arc::downgrade(&mesh);
    mesh
}

/// Waits until something is so.
pub fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Ends a program that this test started.
pub fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal to a process that this test started.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill -{name} {pid}");
}

/// Both outputs, for messages.
pub fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}{err}", output.status)
}

/// Runs a command to its end, which must come.
pub fn run(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{command:?} does not end");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let join = |reader: thread::JoinHandle<Vec<u8>>| reader.join().expect("a reader");
    Output { status, stdout: join(out), stderr: join(err) }
}

fn gather(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn write(path: &Path, content: &str) {
    let part = path.with_extension("part~");
    fs::write(&part, content).expect("the file can be written");
    fs::rename(&part, path).expect("the file can be renamed");
}
