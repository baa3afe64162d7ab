//! What is looked at beside the timed rounds, once per scenario and system: system calls of the proxies (strace(1)), which do not
//! depend on how fast the machine is, and profiles (perf(1)).

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stillmesh_runtime::sys::process::Launch;

use super::process::Process;
use crate::driver::until;

/// How one measurement is looked at.
#[derive(Clone, Debug)]
pub(super) enum Watch {
    /// Not at all: only such a one is timed.
    Not,
    /// System calls are counted.
    Calls,
    /// Profiles are written into this folder, under this name.
    Profile(PathBuf, String),
}

/// Tools at work on processes. Dropping it ends them.
#[derive(Debug, Default)]
pub(super) struct Watching {
    tools: Vec<Tool>,
    counts: Option<tempfile::NamedTempFile>,
    profiles: Vec<PathBuf>,
}

#[derive(Debug)]
struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        // Ended already, it is only waited for once more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether a tool is there. Errors say what it is for.
pub(super) fn needed(tool: &str, what: &str) -> anyhow::Result<()> {
    let found = Command::new(tool).arg("--version").stdin(Stdio::null()).output();
    ensure!(
        found.as_ref().is_ok_and(|output| output.status.success()),
        "{what} by {tool}(1), which cannot be run: {}",
        found
            .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stderr).trim().to_owned())
    );
    Ok(())
}

impl Watch {
    /// Begins, and returns when the tools are at work. Errors: one cannot.
    pub(super) fn begin(&self, proxies: &[Process]) -> anyhow::Result<Watching> {
        match self {
            Self::Not => Ok(Watching::default()),
            Self::Calls => count(proxies),
            Self::Profile(folder, name) => profile(proxies, folder, name),
        }
    }
}

impl Watching {
    /// Ends it: how many system calls there were, where they were counted. Reports of profiles are written.
    pub(super) fn end(mut self) -> anyhow::Result<Option<u64>> {
        for Tool(child) in &mut self.tools {
            match child.stdin.take() {
                // A profile lasts as long as the program at the other end of this.
                Some(input) => drop(input),
                // Signals that interrupt this process are blocked in its children, this one is not.
                None => kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGQUIT)?,
            }
            let what = child.id();
            until(|| {
                child.try_wait()?.with_context(|| format!("process {what}, which looks at the proxies, does not end"))
            })?;
        }
        for data in &self.profiles {
            report(data)?;
        }
        let Some(counts) = &self.counts else { return Ok(None) };
        let text = std::fs::read_to_string(counts.path())?;
        total(&text).map(Some).with_context(|| format!("strace counted nothing: {text:?}"))
    }
}

fn count(proxies: &[Process]) -> anyhow::Result<Watching> {
    let counts = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(counts.path());
    for proxy in proxies {
        command.args(["-p", &proxy.pid().to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Launch::new().death_signal(Signal::SIGKILL).spawn(&mut command).context("start strace")?;
    let errors = child.stderr.take().context("strace's output")?;
    let tool = Tool(child);
    let mut lines = BufReader::new(errors).lines();
    let mut attached = 0;
    let mut said = String::new();
    while attached < proxies.len() {
        let Some(line) = lines.next().transpose()? else { bail!("strace did not attach to the proxies: {said}") };
        // It names each process once, and then the threads that are made.
        if proxies.iter().any(|proxy| line.contains(&format!("Process {} attached", proxy.pid()))) {
            attached += 1;
        }
        said += &format!("{line}; ");
    }
    // What it says from now on is nobody's business, but it must be able to.
    std::thread::Builder::new().name("strace".to_owned()).spawn(move || lines.map_while(Result::ok).for_each(drop))?;
    Ok(Watching { tools: vec![tool], counts: Some(counts), profiles: Vec::new() })
}

/// All calls, of a table that `strace -c` writes.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().rev().find(|line| line.split_whitespace().next_back() == Some("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn profile(proxies: &[Process], folder: &Path, name: &str) -> anyhow::Result<Watching> {
    let mut watching = Watching::default();
    for (index, proxy) in proxies.iter().enumerate() {
        let data = folder.join(format!("{name}-{}.data", index + 1));
        if data.exists() {
            std::fs::remove_file(&data)?;
        }
        let mut command = Command::new("perf");
        command.args(["record", "--quiet", "-g", "-F", "999", "-p", &proxy.pid().to_string(), "-o"]).arg(&data);
        // It records until this program ends, which is when its input does.
        command.args(["--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = Launch::new().death_signal(Signal::SIGKILL).spawn(&mut command).context("start perf")?;
        let mut tool = Tool(child);
        until(|| {
            let begun = std::fs::metadata(&data).is_ok_and(|file| file.len() > 0);
            if let (false, Some(status)) = (begun, tool.0.try_wait()?) {
                return Ok(Err(status));
            }
            ensure!(begun, "perf does not begin to record");
            Ok(Ok(()))
        })?
        .or_else(|status| {
            let mut said = String::new();
            tool.0.stderr.take().context("perf's output")?.take(4096).read_to_string(&mut said)?;
            bail!("perf record ended with {status}: {}", said.trim())
        })?;
        watching.tools.push(tool);
        watching.profiles.push(data);
    }
    Ok(watching)
}

/// Writes the text of a profile beside it: symbols by their share.
fn report(data: &Path) -> anyhow::Result<()> {
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.2", "-i"])
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .context("run perf report")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "perf report of {}: {}", data.display(), said.trim());
    let text = data.with_extension("txt");
    std::fs::write(&text, &output.stdout).with_context(|| format!("write {}", text.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_with_errors_and_without() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n 50.00    0.1  14  530  71 read\n------ ----\n";
        assert_eq!(total(&format!("{table}100.00    0.007754          14       539        71 total\n")), Some(539));
        assert_eq!(total(&format!("{table}100.00    0.007754          14       12           total\n")), Some(12));
        assert_eq!(total(""), None);
    }

    #[test]
    fn a_tool_that_is_missing_is_named_with_what_it_is_for() {
        let refusal = needed("no-such-tool", "profiles are made").unwrap_err().to_string();
        assert!(refusal.starts_with("profiles are made by no-such-tool(1), which cannot be run: "), "{refusal}");
    }
}
