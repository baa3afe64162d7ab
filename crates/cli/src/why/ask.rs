//! Puts a question to all that could have seen something, and follows the ids in what they tell.

use std::collections::BTreeSet;

use serde::Serialize;
use stillmesh_records::{Answer, Hop, Query, Told};

use super::place::{self, Proxy};

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

/// Asks all, and gives the ids that lead on from what is new: refused ones first, then the newest.
pub(super) async fn ask(proxies: &[Proxy], query: &Query, gathered: &mut Gathered) -> Vec<u128> {
    let mut new: Vec<Told> = Vec::new();
    for (by, answer) in place::answers::<Answer>(proxies, &format!("/decisions?{query}")).await {
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
    let mut ids: Vec<u128> = Vec::new();
    for told in &new {
        // What a waypoint carries on is followed; where it came from is the same id everywhere.
        let next = told.next.as_ref().filter(|_| told.hop != Hop::Outbound);
        for id in [Some(&told.id), next].into_iter().flatten().filter_map(|id| stillmesh_records::id(id)) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

/// Asks all for these ids, and for those that they lead to.
pub(super) async fn follow(proxies: &[Proxy], gathered: &mut Gathered, ids: Vec<u128>) {
    let mut known: BTreeSet<u128> = BTreeSet::new();
    let mut ids = ids;
    for _ in 0..STEPS {
        ids.retain(|id| known.insert(*id));
        ids.truncate(IDS);
        if ids.is_empty() {
            return;
        }
        ids = ask(proxies, &Query::of(ids), gathered).await;
    }
}
