//! Flows as they are kept on disk and told: who spoke to whom, hour by hour ([`stillmesh_records::flows`]).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use stillmesh_records::{Draft, FlowsAnswer, Moment, Recorder};
use stillmesh_runtime::admin::{Request, Response};
use tokio_util::sync::CancellationToken;

use crate::decisions::now_us;

/// Time between two writings.
const EVERY: Duration = Duration::from_secs(60);
/// Larger files are none of ours, bytes.
const LARGEST: u64 = 1 << 30;

/// Takes over what an earlier process has kept. What cannot be read is left where it is until the next writing, and told.
pub fn restore(recorder: &Recorder, path: &Path) {
    let read = || -> io::Result<Option<Vec<u8>>> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(about) if about.len() > LARGEST => Err(io::Error::other("it is too large")),
            Ok(_) => std::fs::read(path).map(Some),
        }
    };
    let restored = match read() {
        Ok(None) => return,
        Ok(Some(bytes)) => recorder.restore_flows(&bytes, now_us()).map_err(io::Error::from),
        Err(error) => Err(error),
    };
    if let Err(error) = restored {
        tracing::warn!(path = %path.display(), %error, "the flows of before cannot be read: counting begins anew");
    }
}

/// Keeps flows on disk until `end`, and writes them a last time then: whole, put in place by renaming, at once, then at most once a
/// minute and only where something has changed. A file that somebody has taken out, as when the mesh leaves a node, is not
/// brought back by this process.
pub async fn keep(moment: impl Fn() -> Option<Moment>, path: PathBuf, end: CancellationToken) {
    let mut written = None;
    let (mut is_told, mut is_there, mut is_over) = (false, false, false);
    loop {
        if is_there && matches!(path.try_exists(), Ok(false)) {
            return;
        }
        if let Some(moment) = moment().filter(|moment| written != Some(moment.changes)) {
            written = Some(moment.changes);
            let path = path.clone();
            let writing = tokio::task::spawn_blocking(move || write(&moment, &path));
            match writing.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => (is_told, is_there) = (false, true),
                Err(error) if !is_told => {
                    is_told = true;
                    tracing::warn!(%error, "flows are not kept on disk");
                }
                Err(_) => {}
            }
        }
        if is_over {
            return;
        }
        is_over = tokio::time::timeout(EVERY, end.cancelled()).await.is_ok();
    }
}

fn write(moment: &Moment, path: &Path) -> io::Result<()> {
    let bytes = moment.save().map_err(io::Error::from)?;
    // Another process of this node may write at the same time.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let placed = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    placed
}

/// Answers a question of the admin port: `since`, in seconds. `live` is what is open.
pub fn answer(recorder: &Recorder, request: &Request, live: impl FnOnce() -> Vec<Draft>) -> Response {
    let now_us = now_us();
    let since = request.query.iter().find(|(key, _)| key == "since").map(|(_, value)| value.parse::<u64>());
    let Ok(since) = since.transpose() else {
        return Response::text(StatusCode::BAD_REQUEST, "since: a whole number of seconds is accepted\n");
    };
    let since_us = since.map_or(0, |since| now_us.saturating_sub(since.saturating_mul(1_000_000)));
    let answer = match recorder.flows() {
        Some(moment) => moment.tell(since_us, &live(), now_us),
        None => FlowsAnswer { now_us, ..FlowsAnswer::default() },
    };
    Response::json(StatusCode::OK, &answer)
}

#[cfg(test)]
mod tests {
    use stillmesh_records::{DEFAULT_FLOWS, Record};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows.json");
        let recorder = Recorder::with_flows(0, DEFAULT_FLOWS, now_us());
        restore(&recorder, &path);
        recorder.put(&Draft::new(Record { at_us: now_us(), ..Record::default() }));
        let end = CancellationToken::new();
        tokio::join!(keep(|| recorder.flows(), path.clone(), end.clone()), async { end.cancel() });
        let next = Recorder::with_flows(0, DEFAULT_FLOWS, now_us());
        restore(&next, &path);
        let told = next.flows().unwrap().tell(0, &[] as &[Draft], now_us());
        assert_eq!(told.flows.iter().map(|flow| flow.count).sum::<u64>(), 1);
        // Nothing else is left there, and garbage is no reason to stop.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(&path, "{").unwrap();
        restore(&next, &path);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_out_stays_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flows.json");
        let recorder = Recorder::with_flows(0, DEFAULT_FLOWS, now_us());
        let end = CancellationToken::new();
        tokio::join!(keep(|| recorder.flows(), path.clone(), end.clone()), async {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            std::fs::remove_file(&path).unwrap();
            recorder.put(&Draft::new(Record { at_us: now_us(), ..Record::default() }));
            end.cancel();
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
