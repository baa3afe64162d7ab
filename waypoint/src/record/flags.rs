//! How something ended, in Envoy's short codes (contract 9.2) and one of ztunnel's. Pure.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Something that a request or connection met. In the order in which Envoy writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// No endpoint takes traffic.
    NoHealthyUpstream,
    /// The endpoint was slower than the route allows.
    UpstreamTimeout,
    /// The endpoint reset the stream.
    UpstreamReset,
    /// No endpoint was reached.
    UpstreamFailure,
    /// The endpoint broke off.
    UpstreamTermination,
    /// A bound was reached.
    Overflow,
    /// There is nowhere to send it.
    NoRoute,
    /// It was delayed on purpose.
    DelayInjected,
    /// It failed on purpose.
    FaultInjected,
    /// The client broke off.
    DownstreamTermination,
    /// All retries that its rule allows were made.
    RetryLimit,
    /// Nothing passed for too long.
    StreamIdle,
    /// The client's request is not one.
    DownstreamProtocol,
    /// There is no such subset.
    NoCluster,
    /// It was open, and a policy that changed closed it: ztunnel's word.
    Denied,
}

const ALL: [(Flag, &str); 15] = [
    (Flag::NoHealthyUpstream, "UH"),
    (Flag::UpstreamTimeout, "UT"),
    (Flag::UpstreamReset, "UR"),
    (Flag::UpstreamFailure, "UF"),
    (Flag::UpstreamTermination, "UC"),
    (Flag::Overflow, "UO"),
    (Flag::NoRoute, "NR"),
    (Flag::DelayInjected, "DI"),
    (Flag::FaultInjected, "FI"),
    (Flag::DownstreamTermination, "DC"),
    (Flag::RetryLimit, "URX"),
    (Flag::StreamIdle, "SI"),
    (Flag::DownstreamProtocol, "DPE"),
    (Flag::NoCluster, "NC"),
    (Flag::Denied, "DENY"),
];

/// All that one met; none: it went as its ends wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u16);

impl Flags {
    /// These and one more.
    #[must_use]
    pub fn with(self, flag: Flag) -> Self {
        Self(self.0 | 1 << flag as u16)
    }

    /// Whether this is one of them.
    pub fn has(self, flag: Flag) -> bool {
        self.0 & (1 << flag as u16) != 0
    }

    /// These, and one more if there is one.
    #[must_use]
    pub fn and(self, flag: Option<Flag>) -> Self {
        flag.map_or(self, |flag| self.with(flag))
    }
}

impl fmt::Display for Flags {
    /// With commas between them; `-` where there is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut met = ALL.iter().filter(|(flag, _)| self.0 & (1 << *flag as u16) != 0).map(|(_, code)| code);
        f.write_str(met.next().unwrap_or(&"-"))?;
        met.try_for_each(|code| write!(f, ",{code}"))
    }
}

impl EncodeLabelValue for Flags {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_envoys_and_in_its_order() {
        assert_eq!(Flags::default().to_string(), "-");
        assert_eq!(Flags::default().with(Flag::RetryLimit).with(Flag::UpstreamFailure).to_string(), "UF,URX");
        assert_eq!(Flags::default().and(None).and(Some(Flag::DownstreamProtocol)).to_string(), "DPE");
        for (index, (flag, _)) in ALL.iter().enumerate() {
            assert_eq!(*flag as usize, index, "{flag:?}");
        }
    }
}
