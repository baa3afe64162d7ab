use stillmesh_api::probes::{Said, Verdict};

use super::*;

fn notice(uid: &str, quarantine: Option<&str>, cut: u64) -> Notice {
    let order = quarantine.map(|_| "u-1".to_owned());
    Notice { uid: uid.to_owned(), quarantine: quarantine.map(str::to_owned), order, cut, took: Duration::ZERO }
}

/// The word is told whenever it is due, in this time: how often.
fn times(words: &mut Words, notice: &Notice, begin: Instant, length: Duration, is_heard: bool) -> usize {
    let mut told = 0;
    for second in 0..length.as_secs() {
        let now = begin + Duration::from_secs(second);
        if words.is_due(notice, now) {
            words.told(notice.clone(), is_heard, now);
            told += 1;
        }
    }
    told
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn a_pod_that_no_quarantine_cut_off_is_told_of_three_times() {
    let (mut words, begin) = (Words::default(), Instant::now());
    // A former tunnel may have said of it that it is cut off, and an agent that has heard may end before it writes that down.
    let free = notice("a", None, 0);
    assert_eq!(times(&mut words, &free, begin, Duration::from_secs(60), true), 1);
    assert_eq!(times(&mut words, &free, begin + Duration::from_secs(60), DAY, true), 2);
}

#[test]
fn one_that_is_cut_off_is_told_of_every_minute_and_when_it_is_so_no_more_ten_minutes_long() {
    let (mut words, begin) = (Words::default(), Instant::now());
    let cut = notice("a", Some("shop/q"), 1);
    assert_eq!(words.told(cut.clone(), true, begin), Some("shop/q"));
    assert_eq!(words.told(notice("a", Some("shop/q"), 2), true, begin), None, "the audit log has it already");
    assert_eq!(times(&mut words, &cut, begin, Duration::from_secs(600), true), 10);
    assert_eq!(times(&mut words, &notice("a", None, 0), begin, DAY, true), 11);
    assert_eq!(words.told(cut.clone(), true, begin), Some("shop/q"), "a new one is news");
    let again = Notice { order: Some("u-2".to_owned()), ..cut };
    assert!(words.is_due(&again, begin));
    assert_eq!(words.told(again.clone(), true, begin), Some("shop/q"), "as is one that was made again under its name");
    let untold = Notice { order: None, ..again.clone() };
    assert_eq!(words.told(untold, true, begin), None, "a controller of before does not say which it is");
    assert_eq!(words.told(again, true, begin), None);
}

#[test]
fn an_agent_that_does_not_hear_is_told_again_ever_more_seldom() {
    let (mut words, begin) = (Words::default(), Instant::now());
    let cut = notice("a", Some("shop/q"), 1);
    assert_eq!(times(&mut words, &cut, begin, Duration::from_secs(7), false), 3, "after 0, 2 and 6 s");
    let hour = Duration::from_secs(3600);
    times(&mut words, &cut, begin + hour, hour, false);
    assert_eq!(times(&mut words, &cut, begin + 2 * hour, hour, false), 60, "every minute in the end");
    let later = begin + 3 * hour;
    assert!(words.is_due(&notice("a", Some("shop/q"), 2), later), "what is new is told at once");
    assert_eq!(words.told(cut, true, later), Some("shop/q"), "heard for the first time");
}

#[tokio::test]
async fn a_pod_that_the_agent_does_not_hear_of_keeps_no_other_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("probes.sock");
    let mut listener = probes::listen(&path).unwrap();
    let mut heard = Vec::new();
    let agent = async {
        loop {
            let socket = listener.accept().await.unwrap();
            match probes::said(&socket).await {
                // It has no room for it, and closes.
                Ok(Said::Notice(one)) if one.uid == "b" => {}
                Ok(Said::Notice(one)) => {
                    if probes::answer(&socket, Verdict::Other).await.is_ok() {
                        heard.push(one.uid);
                    }
                }
                other => drop(other),
            }
        }
    };
    let mut words = Words::default();
    let notices: BTreeMap<String, Notice> =
        ["a", "b", "c"].map(|uid| (format!("shop/{uid}"), notice(uid, Some("shop/q"), 1))).into();
    let is_heard = |words: &Words, uid: &str| words.0.get(uid).is_some_and(|word| word.heard.is_some());
    let telling = async {
        // On a machine that stands still one may be told twice.
        while !(is_heard(&words, "a") && is_heard(&words, "c")) {
            words.0.retain(|_, word| word.failures == 0);
            words.pass(&path, notices.clone()).await;
        }
    };
    tokio::select! {
        () = telling => {}
        () = agent => {}
    }
    assert!(!is_heard(&words, "b") && words.0["b"].failures > 0);
    assert!(heard.contains(&"a".to_owned()) && heard.contains(&"c".to_owned()), "{heard:?}");
    words.pass(&path, BTreeMap::new()).await;
    assert!(words.0.is_empty(), "pods that are gone are forgotten");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_hangs_hears_of_who_is_cut_off_first_and_a_pass_ends_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("probes.sock");
    let _hangs = probes::listen(&path).unwrap();
    let mut notices: BTreeMap<String, Notice> = (0..100)
        .map(|number| (format!("shop/{number:03}"), notice(&number.to_string(), None, 0)))
        .chain([("shop/last".to_owned(), notice("last", Some("shop/q"), 1))])
        .collect();
    let mut words = Words::default();
    let begin = tokio::time::Instant::now();
    words.pass(&path, notices.clone()).await;
    assert!(begin.elapsed() <= PASS + 2 * probes::DEADLINE, "{:?}", begin.elapsed());
    assert!(words.0.contains_key("last") && words.0.len() <= 3 * AT_ONCE, "{}", words.0.len());
    // Who had no turn is next, before those who had one; and a new Quarantine before all.
    let told: Vec<String> = words.0.keys().cloned().collect();
    notices.insert("shop/late".to_owned(), notice("zz", Some("shop/q"), 1));
    words.pass(&path, notices).await;
    assert!(words.0.contains_key("zz"));
    assert!(
        words.0.len() > told.len() + 1 && told.iter().all(|uid| uid == "last" || words.0[uid].failures == 1),
        "{told:?}"
    );
}
