//! Bytes of nf_tables messages.
