//! Watches the link between the nodes: what an eavesdropper on the wire would see.
//!
//! `stillmesh capture NODE` runs this inside the node's network namespace. It sorts every TCP segment that carries
//! application bytes by what those bytes are (TLS records, or clear) and looks for given words in the clear. It can keep
//! the frames as a pcap file for other tools.

pub(crate) mod packet;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use stillmesh_runtime::sys::packet::PacketSocket;

use crate::machine::CaptureSpec;
use crate::machine::init;
use crate::output;
use packet::{Segment, segment};

/// Port of HBONE (contract, table of ports).
const HBONE: u16 = 15008;
/// Port of the control plane, whose sessions are TLS as well.
const CONTROL: u16 = 15012;
/// How a record of TLS application data begins (RFC 8446 section 5.1).
const APPLICATION_DATA: &[u8] = &[23, 3, 3];
/// Flows listed in a summary; more are only counted.
const MOST_FLOWS: usize = 1000;
/// How often the end of the capture is looked for while the wire is silent.
const PATIENCE: Duration = Duration::from_millis(50);

/// What to capture, and for how long.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct Capture {
    /// Interface to watch, in the node's namespace
    #[arg(long, default_value = "eth0")]
    pub(crate) interface: String,
    /// Seconds to capture for
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Text to look for in the application's bytes; may be given several times
    #[arg(long = "find")]
    pub(crate) words: Vec<String>,
    /// Keep the frames in this file, in pcap format
    #[arg(long)]
    pub(crate) pcap: Option<std::path::PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    parsed.ok_or_else(|| "0 to 86400 seconds are accepted".to_owned())
}

/// What went over the link.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// TCP segments with application bytes.
    pub(crate) segments: u64,
    /// Application bytes inside TLS sessions between ztunnels.
    pub(crate) tunnel_bytes: u64,
    /// Segments between ztunnels that begin with a record of TLS application data.
    pub(crate) tunnel_records: u64,
    /// Application bytes of the control plane's own TLS sessions.
    pub(crate) control_bytes: u64,
    /// Application bytes of everything else: in the clear as far as the mesh is concerned.
    pub(crate) clear_bytes: u64,
    /// Segments that contain one of the words looked for, on whatever port.
    pub(crate) found: u64,
    /// The beginning of the first segment that contains one, made printable.
    pub(crate) sample: Option<String>,
    /// Frames that the kernel dropped because they came faster than they were read.
    pub(crate) dropped: u64,
    /// Bytes by flow in the clear, `source -> destination`.
    pub(crate) clear_flows: BTreeMap<String, u64>,
}

impl Summary {
    /// For people.
    fn told(&self) -> String {
        let mut text = format!(
            "{} segments with application bytes: {} bytes in TLS between node tunnels, {} to the control plane, {} in the clear",
            self.segments, self.tunnel_bytes, self.control_bytes, self.clear_bytes
        );
        for (flow, bytes) in &self.clear_flows {
            text.push_str(&format!("\n  clear  {flow}: {bytes} bytes"));
        }
        if let Some(sample) = &self.sample {
            text.push_str(&format!("\n  found {} times, first {sample}", self.found));
        }
        if self.dropped > 0 {
            text.push_str(&format!("\n  {} frames were lost: they came faster than they were read", self.dropped));
        }
        text
    }

    /// Adds one segment.
    fn take(&mut self, segment: &Segment<'_>, words: &[String]) {
        if segment.payload.is_empty() {
            return;
        }
        let bytes = u64::try_from(segment.payload.len()).unwrap_or(u64::MAX);
        self.segments += 1;
        let port = |wanted: u16| [segment.source, segment.destination].iter().any(|end| end.port() == wanted);
        if words.iter().any(|word| contains(segment.payload, word.as_bytes())) {
            self.found += 1;
            self.sample.get_or_insert_with(|| printable(segment));
        }
        if port(HBONE) {
            self.tunnel_bytes += bytes;
            self.tunnel_records += u64::from(segment.payload.starts_with(APPLICATION_DATA));
        } else if port(CONTROL) {
            self.control_bytes += bytes;
        } else {
            self.clear_bytes += bytes;
            let flow = flow(segment.source, segment.destination);
            if self.clear_flows.len() < MOST_FLOWS || self.clear_flows.contains_key(&flow) {
                *self.clear_flows.entry(flow).or_default() += bytes;
            }
        }
    }
}

/// Internal step: captures in a node's namespace and prints what was seen.
pub(crate) fn in_namespace(spec: &CaptureSpec) -> anyhow::Result<ExitCode> {
    init::unblock_signals();
    set_pdeathsig(Signal::SIGKILL)?;
    setns(std::fs::File::open(&spec.netns)?, CloneFlags::CLONE_NEWNET).context("entering the node's network")?;
    let summary = run(&spec.capture)?;
    output::line(&if spec.capture.json { serde_json::to_string(&summary)? } else { summary.told() });
    Ok(ExitCode::SUCCESS)
}

/// Captures until the time is over. Errors: no permission for packet sockets, no such interface, the file cannot be
/// written.
pub(crate) fn run(capture: &Capture) -> anyhow::Result<Summary> {
    let socket = PacketSocket::open(&capture.interface)
        .with_context(|| format!("capture on interface {}", capture.interface))?;
    let mut file = match &capture.pcap {
        Some(path) => Some(Pcap::create(path).with_context(|| format!("write {}", path.display()))?),
        None => None,
    };
    let mut summary = Summary::default();
    let end = Instant::now() + Duration::from_secs_f64(capture.seconds.clamp(0.0, 86_400.0));
    let mut frame = vec![0; 1 << 17];
    while Instant::now() < end {
        let Some(length) = socket.receive(&mut frame, PATIENCE).context("read from the packet socket")? else {
            continue;
        };
        let Some(frame) = frame.get(..length) else { continue };
        if let Some(file) = &mut file {
            file.frame(frame)?;
        }
        if let Some(segment) = segment(frame) {
            summary.take(&segment, &capture.words);
        }
    }
    if let Some(file) = &mut file {
        file.0.flush().context("write the pcap file")?;
    }
    summary.dropped = socket.dropped().context("read the packet socket's counters")?;
    Ok(summary)
}

fn flow(source: SocketAddr, destination: SocketAddr) -> String {
    // A flow's client end has a port of its own each time: name the flow by the server's end.
    if source.port() > destination.port() {
        format!("{} -> {destination}", source.ip())
    } else {
        format!("{source} -> {}", destination.ip())
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    !word.is_empty() && bytes.windows(word.len()).any(|window| window == word)
}

/// The first line or so of a segment with its ends, unprintable bytes as dots.
fn printable(segment: &Segment<'_>) -> String {
    let text = segment.payload.iter().take(72).map(|byte| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    });
    format!("{} -> {}: {}", segment.source, segment.destination, text.collect::<String>())
}

/// A pcap file (the classic format: microseconds, Ethernet).
struct Pcap(std::io::BufWriter<std::fs::File>);

impl Pcap {
    fn create(path: &std::path::Path) -> anyhow::Result<Self> {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 1 << 18, 1] {
            file.write_all(&word.to_le_bytes())?;
        }
        Ok(Self(file))
    }

    fn frame(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        for word in [seconds, now.subsec_micros(), length, length] {
            self.0.write_all(&word.to_le_bytes())?;
        }
        Ok(self.0.write_all(frame)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment_to<'a>(port: u16, payload: &'a [u8]) -> Segment<'a> {
        let end = |port: u16| SocketAddr::from(([10, 244, 1, 2], port));
        Segment { source: end(40_000), destination: end(port), payload }
    }

    #[test]
    fn bytes_are_sorted_by_who_carries_them() {
        let mut summary = Summary::default();
        let words = ["GET /reviews".to_owned()];
        summary.take(&segment_to(9080, b"GET /reviews HTTP/1.1\r\n"), &words);
        summary.take(&segment_to(15008, b"\x17\x03\x03"), &words);
        summary.take(&segment_to(15012, b"\x17\x03\x03\x00"), &words);
        summary.take(&segment_to(9080, b""), &words);
        let sums = (summary.segments, summary.clear_bytes, summary.tunnel_bytes, summary.control_bytes, summary.found);
        assert_eq!(sums, (3, 23, 3, 4, 1));
        assert_eq!(summary.tunnel_records, 1);
        assert_eq!(summary.clear_flows.keys().collect::<Vec<_>>(), ["10.244.1.2 -> 10.244.1.2:9080"]);
        assert!(summary.sample.unwrap().ends_with("GET /reviews HTTP/1.1.."));
    }

    #[test]
    fn a_word_is_found_on_the_tunnels_port_too() {
        let mut summary = Summary::default();
        summary.take(&segment_to(15008, b"secret in a broken tunnel"), &["secret".to_owned()]);
        assert_eq!(summary.found, 1);
    }
}
