use super::*;

#[tokio::test]
async fn a_panicking_task_is_counted_and_the_others_go_on() {
    let tasks = Tasks::new("test");
    let mut bad = tasks.spawn("bad", async { panic!("planted") });
    let mut good = tasks.spawn("good", async { 7 });
    assert_eq!(bad.join().await.map(|()| 0), None);
    assert_eq!(good.join().await, Some(7));
    assert_eq!(tasks.panics(), 1);
    assert!(panics() >= 1);
    assert_eq!(tasks.shutdown(Duration::from_secs(1)).await, Shutdown::Clean);
}

#[tokio::test(start_paused = true)]
async fn shutdown_asks_first_and_cuts_at_the_deadline() {
    let tasks = Tasks::new("test");
    let child = tasks.child("child");
    let asked = child.token();
    let mut polite = child.spawn("polite", async move { asked.cancelled().await });
    let mut deaf = child.spawn("deaf", std::future::pending::<()>());
    assert_eq!(tasks.running(), 2);
    let begin = tokio::time::Instant::now();
    assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Shutdown::Cut { tasks: 1 });
    assert_eq!(begin.elapsed(), Duration::from_secs(5));
    assert_eq!(polite.join().await, Some(()));
    assert_eq!(deaf.join().await, None);
    assert_eq!(tasks.running(), 0);
}

#[tokio::test]
async fn dropping_the_owner_cuts_its_tasks() {
    let tasks = Tasks::new("test");
    let mut task = tasks.spawn("endless", std::future::pending::<()>());
    drop(tasks);
    assert_eq!(task.join().await, None);
}

#[test]
fn tasks_run_on_a_multi_threaded_runtime_given_by_handle() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tasks = Tasks::new("test");
    let mut task = tasks.spawn_on(runtime.handle(), "there", async { std::thread::current().id() });
    let there = runtime.block_on(task.join()).unwrap();
    assert_ne!(there, std::thread::current().id());
}

#[tokio::test]
async fn a_local_task_need_not_be_send() {
    let local = tokio::task::LocalSet::new();
    let tasks = Tasks::new("test");
    let value = local
        .run_until(async {
            let shared = std::rc::Rc::new(5);
            tasks.spawn_local("local", async move { *shared }).join().await
        })
        .await;
    assert_eq!(value, Some(5));
}
