//! Bytes of netlink messages and attributes.
