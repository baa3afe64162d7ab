use super::*;
use crate::fixtures::{LocalCa, identity};

const HOUR: Duration = Duration::from_secs(3600);

fn world() -> (Arc<LocalCa>, Secrets, Tasks) {
    let tasks = Tasks::new("test");
    let ca = LocalCa::new();
    let secrets = ca.secrets(&tasks);
    (ca, secrets, tasks)
}

#[tokio::test(start_paused = true)]
async fn waiting_callers_share_one_request() {
    let (ca, secrets, _tasks) = world();
    let page = identity("page");
    let callers = (0..50).map(|_| secrets.leaf(&page));
    let leaves = futures::future::join_all(callers).await;
    let first = leaves[0].as_ref().unwrap();
    assert!(leaves.iter().all(|leaf| Arc::ptr_eq(leaf.as_ref().unwrap(), first)));
    assert_eq!(ca.calls(), 1);
    assert_eq!(first.identity(), &page);
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_no_longer_than_its_deadline_and_learns_the_last_failure() {
    let (ca, secrets, _tasks) = world();
    ca.set_broken(true);
    let begun = Instant::now();
    let failed = secrets.leaf(&identity("page")).await.unwrap_err();
    assert_eq!((failed.code(), begun.elapsed()), ("IDT020", Duration::from_secs(10)));
    assert!(chain(&failed).ends_with("the CA did not sign: the CA is broken"), "{}", chain(&failed));
    assert!(ca.calls() > 1, "it is tried again meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_silent_ca_ends_at_the_deadline_of_the_call() {
    let (ca, secrets, _tasks) = world();
    ca.close_gate();
    let failed = secrets.leaf(&identity("page")).await.unwrap_err();
    assert!(matches!(failed.code(), "IDT021" | "IDT030"), "{failed}");
    ca.let_through(1000);
    secrets.leaf(&identity("page")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_renewed_at_half_of_its_life_with_jitter() {
    let (ca, secrets, _tasks) = world();
    let page = identity("page");
    let first = secrets.leaf(&page).await.unwrap();
    let begun = Instant::now();
    let renewed = secrets.watch(&page).unwrap().newer_than(&first).await.unwrap();
    let half = 12 * HOUR;
    assert!((half.mul_f64(0.89)..=half.mul_f64(1.01)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_ne!(first.serial(), renewed.serial());
    assert!(Arc::ptr_eq(&secrets.leaf(&page).await.unwrap(), &renewed));
    assert_eq!(ca.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_leaf_until_it_expires_and_backs_off_to_150_seconds() {
    let (ca, secrets, _tasks) = world();
    let page = identity("page");
    let first = secrets.leaf(&page).await.unwrap();
    ca.set_broken(true);
    sleep(23 * HOUR).await;
    assert!(Arc::ptr_eq(&secrets.leaf(&page).await.unwrap(), &first));
    let calls = ca.calls();
    sleep(HOUR / 2).await;
    let tries = ca.calls() - calls;
    // One try each 75 to 150 s.
    assert!((12..=25).contains(&tries), "{tries}");
    sleep(HOUR).await;
    assert!(secrets.current(&page).is_none());
    ca.set_broken(false);
    // Somebody who waits shortens the back-off.
    let begun = Instant::now();
    assert!(!Arc::ptr_eq(&secrets.leaf(&page).await.unwrap(), &first));
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_calls_run_and_those_with_a_waiting_caller_go_first() {
    let (ca, secrets, _tasks) = world();
    ca.close_gate();
    for number in 0..40 {
        secrets.prefetch(&identity(&format!("sa{number}"))).unwrap();
    }
    tokio::task::yield_now().await;
    let wanted = identity("sa39");
    let mut caller = std::pin::pin!(secrets.leaf(&wanted));
    assert!(futures::poll!(&mut caller).is_pending());
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ca.most_at_once(), 7, "six prefetches and the one that is waited for");
    ca.let_through(7);
    caller.await.unwrap();
    ca.let_through(1000);
    sleep(Duration::from_secs(1)).await;
    assert!(secrets.status().iter().all(|status| status.leaf.is_some()));
    assert!(ca.most_at_once() <= 8);
}

#[tokio::test(start_paused = true)]
async fn forgetting_ends_renewal_and_tells_who_waits() {
    let (ca, secrets, tasks) = world();
    let (page, gone) = (identity("page"), identity("gone"));
    secrets.leaf(&page).await.unwrap();
    ca.close_gate();
    let (waiting, ()) = tokio::join!(secrets.leaf(&gone), async {
        tokio::task::yield_now().await;
        secrets.forget(&gone);
        secrets.forget(&page);
    });
    assert_eq!(waiting.unwrap_err().code(), "IDT031");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tasks.running(), 0);
    assert!(secrets.status().is_empty() && secrets.current(&page).is_none());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_cache_ends_all_renewals() {
    let (_ca, secrets, tasks) = world();
    secrets.leaf(&identity("page")).await.unwrap();
    assert_eq!(tasks.running(), 1);
    drop(secrets);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tasks.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_identity_too_many_is_refused() {
    let tasks = Tasks::new("test");
    let ca = LocalCa::new();
    let limits = SecretLimits { identities: 1, ..SecretLimits::default() };
    let secrets = Secrets::new(ca.clone(), ca.clock(), limits, &tasks);
    secrets.leaf(&identity("page")).await.unwrap();
    assert_eq!(secrets.leaf(&identity("other")).await.unwrap_err().code(), "IDT032");
    secrets.leaf(&identity("page")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_life_of_seconds_does_not_make_a_storm() {
    let (ca, secrets, _tasks) = world();
    ca.set_ttl(Duration::from_millis(1500));
    secrets.leaf(&identity("page")).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert!(ca.calls() <= 61, "{}", ca.calls());
}
