//! A mesh driven through the command itself, as a user would: what the demo and the benchmark stand on.
//!
//! Each call is a `stillmesh` command, so everything they show can be repeated by hand.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::Value;
use stillmesh_runtime::sys::process::Launch;

/// Longest wait for anything in the story.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks while waiting.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) struct Mesh {
    name: String,
    dir: PathBuf,
    exe: PathBuf,
    up: Mutex<Child>,
    log: PathBuf,
}

impl Mesh {
    /// Starts `stillmesh up` on the directory. Errors: it ends at once, with what it said.
    pub(crate) fn start(name: &str, dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("find this command's own file")?;
        let log = dir.join(".up.log");
        let said = std::fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
        let mut command = Command::new(&exe);
        command.args(["up", "--name", name, "--nodes", "2"]).args(options).arg(dir).stdin(Stdio::null());
        command.stdout(said.try_clone()?).stderr(said);
        // Killed, this process takes the mesh with it.
        let up = Launch::new().death_signal(Signal::SIGTERM).spawn(&mut command).context("start `stillmesh up`")?;
        TRACE.lock().ups.push(up.id());
        Ok(Self { name: name.to_owned(), dir: dir.to_owned(), exe, up: Mutex::new(up), log })
    }

    /// What `up` printed.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until every pod is ready; the error is what `up` said.
    pub(crate) fn ready(&self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.up.lock().try_wait()? {
                bail!("`stillmesh up` ended with {status}:\n{}", self.said());
            }
            if self.run(&["status", "--wait", "5"])?.status.success() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        bail!("not every pod is ready after {PATIENCE:?}:\n{}", self.said())
    }

    /// Process id of `stillmesh up`.
    pub(crate) fn pid(&self) -> u32 {
        self.up.lock().id()
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The command's own file, as text.
    pub(crate) fn exe(&self) -> String {
        self.exe.to_string_lossy().into_owned()
    }

    /// A command against the mesh, not run yet. Options end before a `--` among the arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let at = arguments.iter().position(|argument| *argument == "--").unwrap_or(arguments.len());
        let (options, rest) = arguments.split_at(at);
        let mut command = Command::new(&self.exe);
        command.args(options).args(["--name", &self.name]).args(rest).stdin(Stdio::null());
        command
    }

    /// Runs a command against the mesh.
    pub(crate) fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.command(arguments).output().with_context(|| format!("run stillmesh {}", arguments.join(" ")))
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "stillmesh {}: {}", arguments.join(" "), error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Pods of a namespace.
    pub(crate) fn pods(&self, namespace: &str) -> anyhow::Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.must(&["get", "pods", "-n", namespace, "-o", "json"])?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// GETs a path from a pod by the bundled client.
    pub(crate) fn fetch(&self, namespace: &str, pod: &str, authority: &str, path: &str) -> anyhow::Result<String> {
        let exe = self.exe.to_string_lossy();
        self.must(&["exec", "-n", namespace, pod, "--", &exe, "shop", "fetch", authority, "--path", path])
    }

    /// The last line of JSON that a pod printed.
    pub(crate) fn counters(&self, pod: &str) -> anyhow::Result<Value> {
        let log = self.must(&["logs", "-n", "shop", pod])?;
        let line = log.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        line.with_context(|| format!("{pod} has printed no counters yet"))
    }

    /// What went over the link of node1 in so many seconds.
    pub(crate) fn capture(&self, seconds: &str, word: &str) -> anyhow::Result<crate::capture::Summary> {
        let seen = self.must(&["capture", "node1", "--seconds", seconds, "--find", word, "--json"])?;
        Ok(serde_json::from_str(&seen)?)
    }

    /// Writes a manifest, atomically.
    pub(crate) fn apply(&self, file: &str, content: &str) -> anyhow::Result<()> {
        let part = self.dir.join(format!(".{file}.part"));
        std::fs::write(&part, content)?;
        Ok(std::fs::rename(part, self.dir.join(file))?)
    }

    /// Deletes a manifest.
    pub(crate) fn delete(&self, file: &str) -> anyhow::Result<()> {
        std::fs::remove_file(self.dir.join(file)).with_context(|| format!("delete {file}"))
    }

    /// Takes the mesh down.
    pub(crate) fn down(&self) -> anyhow::Result<()> {
        self.must(&["down"])?;
        self.wait()
    }

    /// Waits for the end of `up` (Ctrl-C reaches it too).
    pub(crate) fn wait(&self) -> anyhow::Result<()> {
        let mut up = self.up.lock();
        up.wait()?;
        forget(&up);
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // After `down` it has ended; after an error this ends it. `up` leaves nothing when it is killed.
        let up = self.up.get_mut();
        forget(up);
        let _ = up.kill();
        let _ = up.wait();
    }
}

/// What an interrupt (Ctrl-C) has to clear away.
#[derive(Debug, Default)]
struct Trace {
    ups: Vec<u32>,
    dirs: Vec<PathBuf>,
}

static TRACE: Mutex<Trace> = Mutex::new(Trace { ups: Vec::new(), dirs: Vec::new() });

/// An interrupt leaves it alone: its number may be another process's once it was waited for.
fn forget(up: &Child) {
    TRACE.lock().ups.retain(|pid| *pid != up.id());
}

/// From here on an interrupt ends every mesh, removes the temporary manifests and then this process. Called before other
/// threads and children are made: they inherit what is blocked here.
pub(crate) fn clear_away_when_interrupted() -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("waiting for signals")?;
    std::thread::Builder::new().name("interrupts".to_owned()).spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        let trace = TRACE.lock();
        for pid in trace.ups.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
            // All that `up` made goes with it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for dir in &trace.dirs {
            let _ = std::fs::remove_dir_all(dir);
        }
        std::process::exit(128 + signal as i32);
    })?;
    Ok(())
}

/// Asks again until the answer is there; the last error otherwise.
pub(crate) fn until<T>(look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    until_every(LOOK, look)
}

/// Likewise, with such a pause between two questions.
pub(crate) fn until_every<T>(pause: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => return Err(error.context(format!("still so after {PATIENCE:?}"))),
            Err(_) => std::thread::sleep(pause),
        }
    }
}

/// A directory of manifests.
pub(crate) enum Files {
    /// Goes when dropped.
    Temporary(TemporaryDir),
    /// Stays.
    Kept(PathBuf),
}

/// A folder that goes when it is dropped.
pub(crate) struct TemporaryDir(PathBuf);

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        // It was ours alone; what cannot be removed is no reason to fail at the end.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Files {
    /// Files (name and content) in a new folder for temporary files.
    pub(crate) fn temporary(contents: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("stillmesh-{:016x}", rand::random::<u64>()));
        TRACE.lock().dirs.push(dir.clone());
        Self::Temporary(TemporaryDir(dir)).fill(contents)
    }

    /// Files in a folder of that name, which must not be there yet.
    pub(crate) fn keep(dir: &Path, contents: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::Kept(std::path::absolute(dir)?).fill(contents)
    }

    fn fill(self, contents: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = self.path();
        std::fs::create_dir(dir)
            .with_context(|| format!("make the folder {}; is it left of an earlier run?", dir.display()))?;
        for (name, content) in contents {
            let file = dir.join(name);
            std::fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(self)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => &dir.0,
            Self::Kept(dir) => dir,
        }
    }
}
