use proptest::prelude::*;

use super::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None as Nothing};
use super::*;

/// What a path becomes at each level; `!` is refused.
#[rustfmt::skip]
const TABLE: [(&str, [&str; 4]); 38] = [
    //                  NONE             BASE           MERGE_SLASHES  DECODE_AND_MERGE_SLASHES
    ("/",              ["/",             "/",           "/",           "/"]),
    ("/a/b",           ["/a/b",          "/a/b",        "/a/b",        "/a/b"]),
    ("/A/b",           ["/A/b",          "/A/b",        "/A/b",        "/A/b"]),
    ("/a/",            ["/a/",           "/a/",         "/a/",         "/a/"]),
    ("/a/./b",         ["/a/./b",        "/a/b",        "/a/b",        "/a/b"]),
    ("/a/../b",        ["/a/../b",       "/b",          "/b",          "/b"]),
    ("/../../b",       ["/../../b",      "/b",          "/b",          "/b"]),
    ("/a/..",          ["/a/..",         "/",           "/",           "/"]),
    ("/a/b/..",        ["/a/b/..",       "/a/",         "/a/",         "/a/"]),
    ("/a/.",           ["/a/.",          "/a/",         "/a/",         "/a/"]),
    ("/a/...",         ["/a/...",        "/a/...",      "/a/...",      "/a/..."]),
    ("/a/.b",          ["/a/.b",         "/a/.b",       "/a/.b",       "/a/.b"]),
    ("/a/%2e%2E/b",    ["/a/%2e%2E/b",   "/b",          "/b",          "/b"]),
    ("/a/%2e./b",      ["/a/%2e./b",     "/b",          "/b",          "/b"]),
    ("/a\\b",          ["/a\\b",         "/a/b",        "/a/b",        "/a/b"]),
    ("/a\\..\\b",      ["/a\\..\\b",     "/b",          "/b",          "/b"]),
    ("/%41dmin",       ["/%41dmin",      "/Admin",      "/Admin",      "/Admin"]),
    ("/%7Ea",          ["/%7Ea",         "/~a",         "/~a",         "/~a"]),
    ("/a%20b",         ["/a%20b",        "/a%20b",      "/a%20b",      "/a%20b"]),
    ("/a%3bb",         ["/a%3bb",        "/a%3bb",      "/a%3bb",      "/a%3bb"]),
    ("//a///b",        ["//a///b",       "//a///b",     "/a/b",        "/a/b"]),
    ("/a//../b",       ["/a//../b",      "/a/b",        "/a/b",        "/a/b"]),
    ("/a%2Fb",         ["/a%2Fb",        "/a%2Fb",      "/a%2Fb",      "/a/b"]),
    ("/a%2f%2fb",      ["/a%2f%2fb",     "/a%2f%2fb",   "/a%2f%2fb",   "/a/b"]),
    ("/a%5cb",         ["/a%5cb",        "/a%5cb",      "/a%5cb",      "/a/b"]),
    ("/a%2F..%2Fb",    ["/a%2F..%2Fb",   "/a%2F..%2Fb", "/a%2F..%2Fb", "/b"]),
    ("/a%252Fb",       ["/a%252Fb",      "/a%252Fb",    "/a%252Fb",    "/a%252Fb"]),
    ("/a%00b",         ["/a%00b",        "!",           "!",           "!"]),
    ("/100%",          ["/100%",         "/100%",       "/100%",       "/100%"]),
    ("/a%zzb",         ["/a%zzb",        "/a%zzb",      "/a%zzb",      "/a%zzb"]),
    ("/a%%341",        ["/a%%341",       "!",           "!",           "!"]),
    ("/%%c3%619",      ["/%%c3%619",     "/%%c3a9",     "/%%c3a9",     "/%%c3a9"]),
    ("/a%%61a",        ["/a%%61a",       "!",           "!",           "!"]),
    ("/a/..;b/c",      ["/a/..;b/c",     "!",           "!",           "!"]),
    ("/a/..;b/..",     ["/a/..;b/..",    "!",           "!",           "!"]),
    ("/a/.;/c",        ["/a/.;/c",       "!",           "!",           "!"]),
    ("/a;b/c..;d",     ["/a;b/c..;d",    "/a;b/c..;d",  "/a;b/c..;d",  "/a;b/c..;d"]),
    ("*",              ["*",             "*",           "*",           "*"]),
];

#[test]
fn paths_become_what_the_table_says() {
    for (path, expected) in TABLE {
        for (level, expected) in PathNormalization::ALL.into_iter().zip(expected) {
            let got = normalize(path, level).unwrap_or("!".into());
            assert_eq!(got, expected, "{path} at {level}");
        }
    }
}

#[test]
fn levels_are_known_by_istios_names() {
    for level in PathNormalization::ALL {
        assert_eq!(PathNormalization::named(&level.to_string()), Some(level));
    }
    assert_eq!(PathNormalization::named("DEFAULT"), Some(Base));
    assert_eq!(PathNormalization::named("base"), None);
}

fn any_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/"),
        Just("//"),
        Just("."),
        Just(".."),
        Just("a"),
        Just("B"),
        Just("%"),
        Just("%2"),
        Just("%2f"),
        Just("%5C"),
        Just("%2e"),
        Just("%41"),
        Just("%25"),
        Just("34"),
        Just("1"),
        Just("\\"),
        Just("é"),
        Just("%c3"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #[test]
    fn a_normalized_path_stays_as_it_is(path in any_path()) {
        for level in [Nothing, Base, MergeSlashes, DecodeAndMergeSlashes] {
            if let Ok(once) = normalize(&path, level) {
                let twice = normalize(&once, level).map(Cow::into_owned);
                prop_assert_eq!(twice.as_deref(), Ok(&*once), "{} at {}", path, level);
            }
        }
    }

    #[test]
    fn no_dot_segment_backslash_or_double_slash_is_left(path in any_path()) {
        if let Ok(base) = normalize(&path, Base) {
            prop_assert!(base.starts_with('/') && !base.contains('\\'), "{}", base);
            prop_assert!(base.split('/').all(|segment| segment != "." && segment != ".."), "{}", base);
        }
        if let Ok(decoded) = normalize(&path, DecodeAndMergeSlashes) {
            let lower = decoded.to_ascii_lowercase();
            prop_assert!(!decoded.contains("//") && !lower.contains("%2f") && !lower.contains("%5c"), "{}", decoded);
        }
    }
}
