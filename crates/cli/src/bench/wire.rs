//! What an eavesdropper between the nodes sees of each system: a word that the client sends, or nothing that can be read.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::place::{Place, Stage};
use super::systems::Wire;
use crate::capture::Summary;

/// The word. 48 bytes, which nothing else says.
const WORD: &str = "in-clear-between-nodes-in-clear-between-nodes-in";
/// Seconds of a capture.
const SECONDS: &str = "1";

/// What was seen of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Seen {
    /// TCP segments in which the word was read.
    word_in_clear: u64,
    /// TCP segments between node tunnels that begin with TLS application data.
    tls_records: u64,
}

/// Captures the link of node1 while the word is sent, for each system with ends on two nodes. Errors: the word is read where
/// it must not be; it is not read where it must be, so that the capture proves nothing; the mesh sent no TLS.
pub(super) fn check_all(stage: &Stage) -> anyhow::Result<BTreeMap<String, Seen>> {
    let mut all = BTreeMap::new();
    for place in stage.places.iter().filter(|place| place.wire != Wire::None) {
        crate::output::note(&format!("… {} on the wire", place.name));
        let client = place.client_with("word", 1, 0.0, &["--word", WORD])?;
        let summary = place.mesh.capture(SECONDS, WORD)?;
        client.end()?;
        all.insert(place.name.clone(), judge(place, &summary).with_context(|| format!("{} on the wire", place.name))?);
    }
    Ok(all)
}

fn judge(place: &Place, summary: &Summary) -> anyhow::Result<Seen> {
    let seen = Seen { word_in_clear: summary.found, tls_records: summary.tunnel_records };
    match place.wire {
        Wire::Clear => {
            ensure!(seen.word_in_clear > 0, "what is sent in clear was not seen: the capture proves nothing")
        }
        Wire::Encrypted => {
            let sample = summary.sample.as_deref().unwrap_or_default();
            ensure!(seen.word_in_clear == 0, "the application's bytes can be read between the nodes: {sample}");
            ensure!(!place.in_mesh || seen.tls_records > 0, "no TLS records were seen between the tunnels");
            ensure!(summary.dropped == 0, "{} frames were not captured: they may have been in clear", summary.dropped);
        }
        Wire::None => {}
    }
    Ok(seen)
}
