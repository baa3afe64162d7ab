//! Puts a question to all that could have seen something, and follows the ids in what they tell.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use serde::Serialize;
use stillmesh_records::{Hop, Told};

use super::place::Proxy;
use super::who::End;

/// Proxies that are asked at a time.
const AT_ONCE: usize = 8;
/// Ids of one question.
const IDS: usize = 40;
/// How often ids lead on: client, waypoint, server, and one more.
const STEPS: usize = 4;

/// One of those that were asked.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    /// Who.
    pub(super) by: String,
    /// Since when it has records, in seconds before now; none where it has none.
    pub(super) reaches_back_s: Option<u64>,
    /// Whether it keeps records at all.
    pub(super) is_on: bool,
    /// Why it has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// What was told so far.
#[derive(Default)]
pub(super) struct Gathered {
    /// By all, each record once.
    pub(super) told: Vec<Told>,
    /// Who was asked.
    pub(super) asked: Vec<Asked>,
}

impl Gathered {
    /// What is to be said of those that have not answered.
    pub(super) fn notes(&self) -> Vec<String> {
        let failed = self.asked.iter().filter_map(|asked| Some((asked, asked.error.as_ref()?)));
        let off = self.asked.iter().filter(|asked| asked.error.is_none() && !asked.is_on);
        let failed =
            failed.map(|(asked, error)| format!("{} has not answered, so its part is missing: {error}", asked.by));
        let off = off.map(|asked| format!("{} keeps no records (DECISION_RECORDS_MEMORY is 0)", asked.by));
        failed.chain(off).collect()
    }

    /// Takes a record; `false` where it is there already.
    fn take(&mut self, told: Told) -> bool {
        let is_same = |other: &Told| {
            (&other.by, other.hop, &other.id) == (&told.by, told.hop, &told.id)
                && (other.live && told.live || (other.live == told.live && other.at_us == told.at_us))
        };
        let is_new = !self.told.iter().any(is_same);
        if is_new {
            self.told.push(told);
        }
        is_new
    }
}

/// The question that two ends make.
pub(super) fn question(
    source: &End,
    destination: &End,
    port: Option<u16>,
    since: Duration,
    path: Option<&str>,
    method: Option<&str>,
) -> String {
    let mut pairs = vec![("since", since.as_secs().max(1).to_string())];
    pairs.extend(source.terms.iter().map(|term| ("src", term.to_string())));
    pairs.extend(destination.terms.iter().map(|term| ("dst", term.to_string())));
    pairs.extend(port.map(|port| ("port", port.to_string())));
    pairs.extend(path.map(|path| ("path", path.to_owned())));
    pairs.extend(method.map(|method| ("method", method.to_owned())));
    encoded(&pairs)
}

/// Pairs as a query.
fn encoded(pairs: &[(&str, String)]) -> String {
    let escape = |text: &str| {
        text.bytes().fold(String::new(), |mut whole, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
                whole.push(char::from(byte));
            } else {
                whole.push_str(&format!("%{byte:02X}"));
            }
            whole
        })
    };
    pairs.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect::<Vec<_>>().join("&")
}

/// Asks all, and gives the ids that lead on from what is new: refused ones first, then the newest.
pub(super) async fn ask(proxies: &[Proxy], query: &str, gathered: &mut Gathered) -> Vec<String> {
    let answers = futures::stream::iter(proxies.iter().enumerate())
        .map(|(place, proxy)| async move { (place, proxy.to_string(), proxy.ask(query).await) })
        .buffer_unordered(AT_ONCE);
    let mut answers: Vec<_> = answers.collect().await;
    answers.sort_by_key(|(place, _, _)| *place);
    let mut new: Vec<Told> = Vec::new();
    for (_, by, answer) in answers {
        let (asked, decisions) = match answer {
            Ok(answer) => {
                let age = answer.oldest_us.map(|oldest| answer.now_us.saturating_sub(oldest) / 1_000_000);
                let is_on = answer.is_on;
                (Asked { by: by.clone(), reaches_back_s: age, is_on, error: None }, answer.decisions)
            }
            Err(error) => {
                let error = Some(format!("{error:#}"));
                (Asked { by: by.clone(), reaches_back_s: None, is_on: false, error }, Vec::new())
            }
        };
        match gathered.asked.iter_mut().find(|before| before.by == by) {
            Some(before) if before.error.is_some() => {}
            Some(before) => *before = asked,
            None => gathered.asked.push(asked),
        }
        for told in decisions {
            let told = Told { by: by.clone(), ..told };
            if gathered.take(told.clone()) {
                new.push(told);
            }
        }
    }
    new.sort_by_key(|told| (!told.refused, std::cmp::Reverse(told.at_us)));
    let mut ids: Vec<String> = Vec::new();
    for told in &new {
        // What a waypoint carries on is followed; where it came from is the same id everywhere.
        let next = if told.hop == Hop::Outbound { None } else { told.next.clone() };
        for id in [Some(told.id.clone()), next].into_iter().flatten() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

/// Asks all for these ids, and for those that they lead to.
pub(super) async fn follow(proxies: &[Proxy], gathered: &mut Gathered, ids: Vec<String>) {
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut ids = ids;
    for _ in 0..STEPS {
        ids.retain(|id| known.insert(id.clone()));
        ids.truncate(IDS);
        if ids.is_empty() {
            return;
        }
        let pairs: Vec<(&str, String)> = ids.iter().map(|id| ("id", id.clone())).collect();
        ids = ask(proxies, &format!("{}&limit=500", encoded(&pairs)), gathered).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_escaped() {
        assert_eq!(
            encoded(&[("path", "/a b&c=ä".to_owned()), ("port", "80".to_owned())]),
            "path=/a%20b%26c%3D%C3%A4&port=80"
        );
    }
}
