//! Builders for tests: a small mesh in a few words.
