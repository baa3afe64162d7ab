//! Children in namespaces and pid 1. The program has no test harness: these calls need a process with one thread.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use stillmesh_runtime::sys::netns::Netns;
use stillmesh_runtime::sys::process::{
    Exit, Init, Isolation, Launch, Signal, Step, fork, pidfd_open, require_single_thread, run_as_init,
    set_parent_death_signal, spawn,
};

/// No test here waits for anything longer than this.
const DEADLINE_SECONDS: u32 = 120;

fn main() {
    // A hung test ends the program; its children end with their pipes or with it.
    nix::unistd::alarm::set(DEADLINE_SECONDS);
    let tests: [(&str, fn()); 9] = [
        ("a_child_ends_with_its_code_or_signal", a_child_ends_with_its_code_or_signal),
        ("a_child_is_root_alone_in_its_namespaces", a_child_is_root_alone_in_its_namespaces),
        ("pid_1_ends_with_its_child_and_takes_all_along", pid_1_ends_with_its_child_and_takes_all_along),
        ("pid_1_forwards_signals_and_reaps_orphans", pid_1_forwards_signals_and_reaps_orphans),
        ("pid_1_ends_when_its_lifeline_breaks", pid_1_ends_when_its_lifeline_breaks),
        ("children_die_with_their_parent", children_die_with_their_parent),
        ("a_launched_program_is_set_up_first", a_launched_program_is_set_up_first),
        ("a_failed_launch_says_at_which_step", a_failed_launch_says_at_which_step),
        ("a_process_with_threads_is_refused", a_process_with_threads_is_refused),
    ];
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut output = std::io::stdout();
    for (name, test) in tests {
        if name.contains(&filter) {
            writeln!(output, "test {name} ...").unwrap();
            test();
        }
    }
}

fn machine() -> Isolation {
    Isolation::new().user().pid().net().mount().uts().ipc()
}

/// Waits for a child in a runtime of its own, which is gone (with its threads, if any) afterwards.
fn wait_async(child: &stillmesh_runtime::sys::process::Child) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(30);
    runtime.block_on(async { tokio::time::timeout(limit, child.exited()).await.unwrap().unwrap() })
}

fn a_child_ends_with_its_code_or_signal() {
    assert_eq!(fork(|| 7).unwrap().wait().unwrap(), Exit::Code(7));
    let panics = || {
        // Nobody is to take its message for this test's.
        std::panic::set_hook(Box::new(|_| ()));
        panic!("planted")
    };
    assert_eq!(fork(panics).unwrap().wait().unwrap(), Exit::Code(101));
    let child = fork(|| {
        loop {
            std::thread::park()
        }
    })
    .unwrap();
    child.signal(Signal::SIGTERM).unwrap();
    let exit = wait_async(&child);
    assert_eq!((exit, exit.code()), (Exit::Signal(15), 143));
    // It is gone and reaped; its descriptor still means it and nobody else.
    child.signal(Signal::SIGTERM).unwrap();
}

fn a_child_is_root_alone_in_its_namespaces() {
    let outside = Netns::current().unwrap().inode();
    let child = spawn(machine(), move || {
        let root = nix::unistd::geteuid().is_root() && nix::unistd::getegid().as_raw() == 0;
        let alone = std::process::id() == 1 && Netns::current().unwrap().inode() != outside;
        nix::unistd::sethostname("mesh").unwrap();
        if root && alone { 0 } else { 1 }
    });
    assert_eq!(child.unwrap_or_else(|error| panic!("{error}: {}", error.source)).wait().unwrap(), Exit::Code(0));
    assert_eq!(Netns::current().unwrap().inode(), outside);
}

/// Runs pid 1 with the given lifeline and body, as the one-machine mesh does.
fn with_init(lifeline: Option<OwnedFd>, body: impl FnOnce() -> i32) -> stillmesh_runtime::sys::process::Child {
    let child = spawn(machine(), || run_as_init(&Init { lifeline }, body).unwrap().code());
    child.unwrap_or_else(|error| panic!("{error}: {}", error.source))
}

fn pid_1_ends_with_its_child_and_takes_all_along() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = with_init(None, move || {
        // A grandchild that would live for ever; it holds the pipe open.
        let _kept = fork(move || {
            let _writer = writer;
            loop {
                std::thread::park();
            }
        });
        9
    });
    assert_eq!(child.wait().unwrap(), Exit::Code(9));
    // The end of the pipe is the end of the last process that held it.
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
}

fn pid_1_forwards_signals_and_reaps_orphans() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let child = with_init(None, move || {
        let signals = SigSet::from(Signal::SIGTERM);
        signals.thread_block().unwrap();
        let (mut told, tell) = std::io::pipe().unwrap();
        let parent = fork(move || {
            // Its parent ends at once, so pid 1 inherits it.
            let orphan = fork(|| 0).unwrap();
            write_pid(tell, orphan.pid());
            0
        });
        assert_eq!(parent.unwrap().wait().unwrap(), Exit::Code(0));
        let mut pid = [0; 4];
        told.read_exact(&mut pid).unwrap();
        until_gone(i32::from_ne_bytes(pid));
        writer.write_all(b"ready").unwrap();
        // The signal that pid 1 is sent arrives here.
        if signals.wait().unwrap() == Signal::SIGTERM { 3 } else { 4 }
    });
    let mut ready = [0; 5];
    reader.read_exact(&mut ready).unwrap();
    child.signal(Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap(), Exit::Code(3));
}

fn write_pid(mut to: std::io::PipeWriter, pid: i32) {
    to.write_all(&pid.to_ne_bytes()).unwrap();
}

/// Returns when there is no such process any more, not even one that waits to be reaped.
fn until_gone(pid: i32) {
    let begin = Instant::now();
    while nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(30), "process {pid} was not reaped");
        std::thread::yield_now();
    }
}

fn pid_1_ends_when_its_lifeline_breaks() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let parent = fork(move || {
        let lifeline = pidfd_open(std::process::id().cast_signed()).unwrap();
        let _init = with_init(Some(lifeline), move || {
            writer.write_all(b"x").unwrap();
            loop {
                std::thread::park();
            }
        });
        loop {
            std::thread::park();
        }
    })
    .unwrap();
    reader.read_exact(&mut [0]).unwrap();
    parent.signal(Signal::SIGKILL).unwrap();
    assert_eq!(parent.wait().unwrap(), Exit::Signal(9));
    reader.read_to_end(&mut Vec::new()).unwrap();
}

fn children_die_with_their_parent() {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let parent = fork(move || {
        let held = writer.try_clone().unwrap();
        let _grandchild = fork(move || {
            set_parent_death_signal(Signal::SIGKILL).unwrap();
            let mut held = held;
            held.write_all(b"x").unwrap();
            loop {
                std::thread::park();
            }
        });
        writer.flush().unwrap();
        drop(writer);
        loop {
            std::thread::park();
        }
    })
    .unwrap();
    reader.read_exact(&mut [0]).unwrap();
    parent.signal(Signal::SIGKILL).unwrap();
    assert_eq!(parent.wait().unwrap(), Exit::Signal(9));
    reader.read_to_end(&mut Vec::new()).unwrap();
}

fn a_launched_program_is_set_up_first() {
    let dir = tempfile::tempdir().unwrap();
    let (new, over) = (dir.path().join("new"), dir.path().join("over"));
    std::fs::write(&new, "bound").unwrap();
    std::fs::write(&over, "original").unwrap();
    let mut program = Command::new("sh");
    program.arg("-c").arg("id -u; cat \"$0\"; test $(cut -d' ' -f6 /proc/$$/stat) = $$").arg(&over);
    program.stdout(std::process::Stdio::piped());
    let launch = Launch::new().isolate(Isolation::new().user().mount().net()).new_session();
    let launch = launch.death_signal(Signal::SIGKILL).bind(&new, &over).unwrap();
    let output = launch.spawn(&mut program).unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\nbound");
    assert!(output.status.success());
    assert_eq!(std::fs::read_to_string(&over).unwrap(), "original");
}

fn a_failed_launch_says_at_which_step() {
    let error = Launch::new().spawn(&mut Command::new("/does/not/exist")).unwrap_err();
    assert_eq!((error.step, error.source.kind()), (Step::Exec, std::io::ErrorKind::NotFound));
    let nowhere = std::path::Path::new("/does/not/exist");
    let launch = Launch::new().isolate(Isolation::new().user().mount()).bind(nowhere, nowhere).unwrap();
    let error = launch.spawn(&mut Command::new("true")).unwrap_err();
    assert_eq!((error.step, error.source.kind()), (Step::Mounts, std::io::ErrorKind::NotFound));
    assert_eq!(error.to_string(), "cannot mount");
    let not_a_namespace = std::fs::File::open("/").unwrap();
    let error = Launch::new().enter(not_a_namespace.into()).spawn(&mut Command::new("true")).unwrap_err();
    assert_eq!(error.step, Step::Enter);
}

fn a_process_with_threads_is_refused() {
    require_single_thread().unwrap();
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || stopped.recv());
        assert!(require_single_thread().is_err());
        assert!(fork(|| 0).is_err());
        drop(stop);
    });
}
