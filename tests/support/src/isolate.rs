//! Runs a test in namespaces of its own, without privilege.
//!
//! A process with several threads, as a test binary is, cannot make a user namespace. So the test binary is started
//! again for this one test, in fresh user, network and mount namespaces where it is root, and the test's body runs
//! there. The outer test fails with the inner one's output when that fails, and with the reason when namespaces are
//! not permitted here.
//!
//! ```no_run
//! #[test]
//! fn loopback_works_here() {
//!     stillmesh_test_support::isolated(|| {
//!         std::net::TcpListener::bind("127.0.0.1:80").unwrap();
//!     });
//! }
//! ```

use std::any::type_name;
use std::fs::File;
use std::future::Future;
use std::io::{Read as _, Seek as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stillmesh_runtime::env::Reader;
use stillmesh_runtime::sys::process::{Isolation, Launch, Signal};

/// Set in the inner process, to the test's name.
const INSIDE: &str = "STILLMESH_TEST_ISOLATED";

/// How long an inner test may take before it counts as hung.
const DEADLINE: Duration = Duration::from_secs(180);

/// Runs the body in fresh user, network and mount namespaces, as root there, with the loopback device up.
/// Must be called directly by the test function, once.
pub fn isolated<F: FnOnce()>(body: F) {
    let test = test_name::<F>();
    if Reader::process().string(INSIDE).as_deref() == Some(test.as_str()) {
        crate::net::loopback_up();
        body();
        return;
    }
    run_inside(&test);
}

/// [`isolated`] for an async body, on a runtime with one thread.
pub fn isolated_async<F, T>(body: F)
where
    F: FnOnce() -> T,
    T: Future<Output = ()>,
{
    let test = test_name::<F>();
    if Reader::process().string(INSIDE).as_deref() == Some(test.as_str()) {
        crate::net::loopback_up();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(body());
        return;
    }
    run_inside(&test);
}

/// The name by which the test harness knows the function that a closure was written in.
fn test_name<F>() -> String {
    let path = type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_crate, path)| path);
    path.split("::{{closure}}").next().unwrap_or(path).to_owned()
}

fn run_inside(test: &str) {
    let program = std::env::current_exe().expect("the path of the test binary");
    let mut output = output_file();
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(INSIDE, test).stdin(Stdio::null());
    command.stdout(output.try_clone().expect("a descriptor")).stderr(output.try_clone().expect("a descriptor"));
    let namespaces = Isolation::new().user().net().mount();
    let launch = Launch::new().isolate(namespaces).death_signal(Signal::SIGKILL);
    let mut inner = launch.spawn(&mut command).unwrap_or_else(|error| {
        panic!(
            "this test needs user, network and mount namespaces of its own, and this machine refuses: {error}: {}. \
             Look at user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns, and the container's seccomp profile",
            error.source
        )
    });
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = inner.try_wait().expect("the inner test's status") {
            break status;
        }
        if begin.elapsed() > DEADLINE {
            inner.kill().expect("to end the inner test");
            break inner.wait().expect("the inner test's status");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    output.rewind().and_then(|()| output.read_to_string(&mut text)).expect("the inner test's output");
    let ran = text.contains("1 passed");
    assert!(
        status.success() && ran,
        "{test} in its own namespaces: {status} after {:?}{}\n{text}",
        begin.elapsed(),
        if status.success() { ", but the test was not found; is isolated() called directly by it?" } else { "" },
    );
    print!("{text}");
}

/// A file without a name: unlike a pipe it is never full, so a hung test still shows what it wrote.
fn output_file() -> File {
    let fd = stillmesh_runtime::sys::fds::memory_file("test-output").expect("a memory file");
    File::from(fd)
}
