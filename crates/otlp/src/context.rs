//! By which trace a request goes: read from its headers and written for whoever is next. W3C Trace Context (level 1) and B3
//! (single and multi). What cannot be read is as if it were absent; ids of zeros are none.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Which headers a request is given whose client sent none, and which are believed first where it sent both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Headers {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `x-b3-…`.
    B3,
}

/// A request's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Of the whole trace.
    pub trace: u128,
    /// Of this span.
    pub span: u64,
    /// Of the span that it is part of; 0: none.
    pub parent: u64,
    /// Whether it is reported.
    pub is_sampled: bool,
}

/// What a client says of its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    /// 0: it says only whether.
    trace: u128,
    span: u64,
    /// `None`: it leaves that to whoever is next.
    is_sampled: Option<bool>,
}

impl Context {
    /// The span of a request with these headers. `sample` decides where its client does not; `span` and `trace` are new ids, not 0.
    pub fn of(headers: &HeaderMap, own: Headers, trace: u128, span: u64, sample: impl FnOnce() -> bool) -> Self {
        let said = match own {
            Headers::W3c => w3c(headers).or_else(|| b3(headers)),
            Headers::B3 => b3(headers).or_else(|| w3c(headers)),
        };
        match said {
            Some(said) if said.trace != 0 => {
                Self { trace: said.trace, span, parent: said.span, is_sampled: said.is_sampled.unwrap_or_else(sample) }
            }
            // B3 may say whether without saying which.
            other => {
                let is_sampled = other.and_then(|said| said.is_sampled).unwrap_or_else(sample);
                Self { trace, span, parent: 0, is_sampled }
            }
        }
    }

    /// Writes it for whoever is next, in each way in which it came, or in one's own. `tracestate` goes on with the trace that it
    /// belongs to only.
    pub fn write(&self, headers: &mut HeaderMap, own: Headers) {
        let flag = u8::from(self.is_sampled);
        let is_single = headers.contains_key(SINGLE);
        let is_multi = [TRACE, SPAN, SAMPLED, FLAGS].iter().any(|name| headers.contains_key(name));
        let is_new = !headers.contains_key(TRACEPARENT) && !is_single && !is_multi;
        if w3c(headers).is_none_or(|said| said.trace != self.trace) {
            headers.remove(TRACESTATE);
        }
        if headers.contains_key(TRACEPARENT) || (is_new && own == Headers::W3c) {
            set(headers, TRACEPARENT, &format!("00-{:032x}-{:016x}-{flag:02x}", self.trace, self.span));
        }
        // An id of 64 bits stays one.
        let trace = match u64::try_from(self.trace) {
            Ok(short) => format!("{short:016x}"),
            Err(_) => format!("{:032x}", self.trace),
        };
        if is_single {
            let parent = if self.parent == 0 { String::new() } else { format!("-{:016x}", self.parent) };
            set(headers, SINGLE, &format!("{trace}-{:016x}-{flag}{parent}", self.span));
        }
        if is_multi || (is_new && own == Headers::B3) {
            set(headers, TRACE, &trace);
            set(headers, SPAN, &format!("{:016x}", self.span));
            match self.parent {
                0 => drop(headers.remove(PARENT)),
                parent => set(headers, PARENT, &format!("{parent:016x}")),
            }
            // To debug says that it is sampled, and nothing else does.
            if self.is_sampled && one(headers, &FLAGS) == Some("1") {
                headers.remove(SAMPLED);
            } else {
                headers.remove(FLAGS);
                set(headers, SAMPLED, &flag.to_string());
            }
        }
    }
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// The one value of a header; several are none.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(first.trim())
}

fn w3c(headers: &HeaderMap) -> Option<Said> {
    let text = one(headers, &TRACEPARENT)?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let lengths = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
    let is_well = lengths.iter().all(|(part, length)| part.len() == *length && lower(part));
    // Later versions may say more behind; this one may not.
    if !is_well || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok()?;
    let span = u64::from_str_radix(span, 16).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (trace != 0 && span != 0).then_some(Said { trace, span, is_sampled: Some(flags & 1 == 1) })
}

fn b3(headers: &HeaderMap) -> Option<Said> {
    if let Some(text) = one(headers, &SINGLE) {
        let parts: Vec<&str> = text.split('-').collect();
        return match parts.as_slice() {
            [whether] => Some(Said { trace: 0, span: 0, is_sampled: Some(sampled(whether)?) }),
            [trace, span] => Some(Said { is_sampled: None, ..ids(trace, span)? }),
            [trace, span, whether] | [trace, span, whether, _] => {
                Some(Said { is_sampled: Some(sampled(whether)?), ..ids(trace, span)? })
            }
            _ => None,
        };
    }
    let is_sampled = match (one(headers, &FLAGS), one(headers, &SAMPLED)) {
        (Some("1"), _) => Some(true),
        (_, Some(text)) => sampled(text),
        _ => None,
    };
    match (one(headers, &TRACE), one(headers, &SPAN)) {
        (Some(trace), Some(span)) => match ids(trace, span) {
            Some(said) => Some(Said { is_sampled, ..said }),
            None => Some(Said { trace: 0, span: 0, is_sampled }),
        },
        _ => is_sampled.map(|is_sampled| Said { trace: 0, span: 0, is_sampled: Some(is_sampled) }),
    }
}

fn sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn ids(trace: &str, span: &str) -> Option<Said> {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let fits = matches!(trace.len(), 16 | 32) && span.len() == 16 && hex(trace) && hex(span);
    let trace = fits.then(|| u128::from_str_radix(trace, 16).ok()).flatten()?;
    let span = u64::from_str_radix(span, 16).ok()?;
    (trace != 0 && span != 0).then_some(Said { trace, span, is_sampled: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn read(pairs: &[(&'static str, &str)], kind: Headers, sample: bool) -> (u128, u64, bool) {
        let found = Context::of(&headers(pairs), kind, 7, 9, || sample);
        assert_eq!(found.span, 9);
        (found.trace, found.parent, found.is_sampled)
    }

    #[test]
    fn w3cs_headers_are_read() {
        let of = |text: &str| read(&[("traceparent", text)], Headers::W3c, true);
        assert_eq!(of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), (ID, 0xb7ad_6b71_6920_3331, false));
        assert!(of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03").2);
        assert_eq!(of("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").0, ID);
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(of(bad), (7, 0, true), "{bad}");
        }
        let twice = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"); 2];
        let mut both = headers(&twice[..1]);
        both.append(TRACEPARENT, HeaderValue::from_static("00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        assert_eq!(Context::of(&both, Headers::W3c, 7, 9, || false).trace, 7);
    }

    #[test]
    fn b3s_headers_are_read_in_all_their_ways() {
        let multi = [("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"), ("x-b3-spanid", "b7ad6b7169203331")];
        assert_eq!(read(&multi, Headers::B3, true), (ID, 0xb7ad_6b71_6920_3331, true));
        let with = |more: (&'static str, &'static str)| read(&[multi[0], multi[1], more], Headers::B3, true).2;
        assert!(!with(("x-b3-sampled", "0")) && with(("x-b3-sampled", "1")) && with(("x-b3-flags", "1")));
        let single = |text: &str, sample| read(&[("b3", text)], Headers::B3, sample);
        assert_eq!(
            single("8448eb211c80319c-b7ad6b7169203331-1", false),
            (0x8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331, true)
        );
        assert!(!single("8448eb211c80319c-b7ad6b7169203331-0-05e3ac9a4f6e3b90", true).2);
        assert!(single("8448eb211c80319c-b7ad6b7169203331", true).2);
        assert_eq!(single("0", true), (7, 0, false));
        assert_eq!(single("xyz-1-1", false), (7, 0, false));
    }

    #[test]
    fn what_is_written_is_read_by_the_next() {
        for (kind, incoming) in [
            (Headers::W3c, headers(&[("tracestate", "a=b")])),
            (Headers::B3, HeaderMap::new()),
            (Headers::B3, headers(&[("b3", "0")])),
        ] {
            for is_sampled in [true, false] {
                let mut passed = incoming.clone();
                let first = Context { trace: ID, span: 5, parent: 0, is_sampled };
                first.write(&mut passed, kind);
                assert!(!passed.contains_key(TRACESTATE), "a new trace has no history");
                let next = Context::of(&passed, kind, 7, 9, || !is_sampled);
                assert_eq!((next.trace, next.parent, next.is_sampled), (ID, 5, is_sampled), "{kind:?}");
            }
        }
    }

    #[test]
    fn traces_go_on_in_the_way_that_they_came() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let passed = |pairs: &[(&'static str, &str)], own| {
            let mut headers = headers(pairs);
            Context::of(&headers, own, 7, 9, || true).write(&mut headers, own);
            let mut all: Vec<_> =
                headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            all.sort();
            all
        };
        let w3c = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000000009-01";
        assert_eq!(passed(&[("traceparent", parent), ("tracestate", "a=b")], Headers::B3), [w3c, "tracestate: a=b"]);
        assert_eq!(
            passed(&[("b3", "8448eb211c80319c-b7ad6b7169203331-1")], Headers::W3c),
            ["b3: 8448eb211c80319c-0000000000000009-1-b7ad6b7169203331"]
        );
        let multi = [("x-b3-traceid", "8448eb211c80319c"), ("x-b3-spanid", "b7ad6b7169203331"), ("x-b3-flags", "0")];
        assert_eq!(
            passed(&multi, Headers::W3c),
            [
                "x-b3-parentspanid: b7ad6b7169203331",
                "x-b3-sampled: 1",
                "x-b3-spanid: 0000000000000009",
                "x-b3-traceid: 8448eb211c80319c"
            ]
        );
        let debug = [multi[0], multi[1], ("x-b3-flags", "1"), ("x-b3-sampled", "odd")];
        let passed_on = passed(&debug, Headers::W3c);
        assert!(
            passed_on.iter().any(|one| one == "x-b3-flags: 1") && !passed_on.iter().any(|one| one.contains("sampled"))
        );
        // Of two traces one's own is believed, and whoever is next finds one.
        let both = [("traceparent", parent), ("tracestate", "a=b"), ("b3", "8448eb211c80319c-b7ad6b7169203331-1")];
        assert_eq!(
            passed(&both, Headers::W3c),
            ["b3: 0af7651916cd43dd8448eb211c80319c-0000000000000009-1-b7ad6b7169203331", w3c, "tracestate: a=b"]
        );
        assert!(!passed(&both, Headers::B3).iter().any(|one| one.starts_with("tracestate")));
        assert_eq!(
            passed(&[("traceparent", "odd")], Headers::B3),
            ["traceparent: 00-00000000000000000000000000000007-0000000000000009-01"]
        );
    }
}
