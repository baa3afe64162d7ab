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

/// Each with its code, and what that means to who asks.
const ALL: [(Flag, &str, &str); 15] = [
    (Flag::NoHealthyUpstream, "UH", "no endpoint takes traffic"),
    (Flag::UpstreamTimeout, "UT", "no answer within the route's timeout"),
    (Flag::UpstreamReset, "UR", "the endpoint reset the stream"),
    (Flag::UpstreamFailure, "UF", "no endpoint was reached"),
    (Flag::UpstreamTermination, "UC", "the endpoint broke off"),
    (Flag::Overflow, "UO", "a bound was reached"),
    (Flag::NoRoute, "NR", "there is nowhere to send it"),
    (Flag::DelayInjected, "DI", "the route delays requests on purpose"),
    (Flag::FaultInjected, "FI", "the route lets requests fail on purpose"),
    (Flag::DownstreamTermination, "DC", "the client broke off"),
    (Flag::RetryLimit, "URX", "all tries were made"),
    (Flag::StreamIdle, "SI", "nothing passed for too long"),
    (Flag::DownstreamProtocol, "DPE", "the client's request is not HTTP as it must be"),
    (Flag::NoCluster, "NC", "there is no such subset"),
    (Flag::Denied, "DENY", "a policy that changed closed it"),
];

/// What a code means, in words; `None` where it is none of these.
pub fn meaning(code: &str) -> Option<&'static str> {
    ALL.iter().find(|(_, known, _)| *known == code).map(|(.., words)| *words)
}

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
        let mut met = ALL.iter().filter(|(flag, ..)| self.0 & (1 << *flag as u16) != 0).map(|(_, code, _)| code);
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
        for (index, (flag, ..)) in ALL.iter().enumerate() {
            assert_eq!(*flag as usize, index, "{flag:?}");
        }
    }
}
