//! Numbers of linux/netfilter/nf_tables.h and its neighbours.

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 0x10;
pub(super) const BATCH_END: u16 = 0x11;

/// Message types, to be used with [`SUBSYSTEM`].
pub(super) mod msg {
    pub(in crate::nft) const NEWTABLE: u16 = 0;
    pub(in crate::nft) const GETTABLE: u16 = 1;
    pub(in crate::nft) const DELTABLE: u16 = 2;
    pub(in crate::nft) const NEWCHAIN: u16 = 3;
    pub(in crate::nft) const GETCHAIN: u16 = 4;
    pub(in crate::nft) const DELCHAIN: u16 = 5;
    pub(in crate::nft) const NEWRULE: u16 = 6;
    pub(in crate::nft) const GETRULE: u16 = 7;
    pub(in crate::nft) const DELRULE: u16 = 8;
    pub(in crate::nft) const NEWSET: u16 = 9;
    pub(in crate::nft) const GETSET: u16 = 10;
    pub(in crate::nft) const DELSET: u16 = 11;
    pub(in crate::nft) const NEWSETELEM: u16 = 12;
    pub(in crate::nft) const GETSETELEM: u16 = 13;
    pub(in crate::nft) const DELSETELEM: u16 = 14;
}

pub(super) mod table {
    pub(in crate::nft) const NAME: u16 = 1;
    pub(in crate::nft) const USERDATA: u16 = 6;
}

pub(super) mod chain {
    pub(in crate::nft) const TABLE: u16 = 1;
    pub(in crate::nft) const NAME: u16 = 3;
    pub(in crate::nft) const HOOK: u16 = 4;
    pub(in crate::nft) const POLICY: u16 = 5;
    pub(in crate::nft) const TYPE: u16 = 7;
    pub(in crate::nft) const HOOK_NUMBER: u16 = 1;
    pub(in crate::nft) const HOOK_PRIORITY: u16 = 2;
}

pub(super) mod rule {
    pub(in crate::nft) const TABLE: u16 = 1;
    pub(in crate::nft) const CHAIN: u16 = 2;
    pub(in crate::nft) const HANDLE: u16 = 3;
    pub(in crate::nft) const EXPRESSIONS: u16 = 4;
    pub(in crate::nft) const USERDATA: u16 = 7;
    pub(in crate::nft) const LIST_ELEMENT: u16 = 1;
    pub(in crate::nft) const EXPR_NAME: u16 = 1;
    pub(in crate::nft) const EXPR_DATA: u16 = 2;
}

pub(super) mod set {
    pub(in crate::nft) const TABLE: u16 = 1;
    pub(in crate::nft) const NAME: u16 = 2;
    pub(in crate::nft) const FLAGS: u16 = 3;
    pub(in crate::nft) const KEY_TYPE: u16 = 4;
    pub(in crate::nft) const KEY_LEN: u16 = 5;
    pub(in crate::nft) const DATA_TYPE: u16 = 6;
    pub(in crate::nft) const DATA_LEN: u16 = 7;
    pub(in crate::nft) const ID: u16 = 10;
    pub(in crate::nft) const FLAG_MAP: u32 = 0x8;
    pub(in crate::nft) const TYPE_VERDICT: u32 = 0xffff_ff00;
}

pub(super) mod element {
    pub(in crate::nft) const LIST_TABLE: u16 = 1;
    pub(in crate::nft) const LIST_SET: u16 = 2;
    pub(in crate::nft) const LIST_ELEMENTS: u16 = 3;
    pub(in crate::nft) const KEY: u16 = 1;
    pub(in crate::nft) const DATA: u16 = 2;
}

pub(super) mod data {
    pub(in crate::nft) const VALUE: u16 = 1;
    pub(in crate::nft) const VERDICT: u16 = 2;
    pub(in crate::nft) const VERDICT_CODE: u16 = 1;
    pub(in crate::nft) const VERDICT_CHAIN: u16 = 2;
}

pub(super) mod verdict {
    pub(in crate::nft) const DROP: i32 = 0;
    pub(in crate::nft) const ACCEPT: i32 = 1;
    pub(in crate::nft) const JUMP: i32 = -3;
    pub(in crate::nft) const GOTO: i32 = -4;
    pub(in crate::nft) const RETURN: i32 = -5;
    /// The register that a verdict is put into.
    pub(in crate::nft) const REGISTER: u32 = 0;
}

/// Attributes of expressions.
pub(super) mod expr {
    pub(in crate::nft) const IMMEDIATE_DREG: u16 = 1;
    pub(in crate::nft) const IMMEDIATE_DATA: u16 = 2;
    pub(in crate::nft) const BITWISE_SREG: u16 = 1;
    pub(in crate::nft) const BITWISE_DREG: u16 = 2;
    pub(in crate::nft) const BITWISE_LEN: u16 = 3;
    pub(in crate::nft) const BITWISE_MASK: u16 = 4;
    pub(in crate::nft) const BITWISE_XOR: u16 = 5;
    pub(in crate::nft) const BITWISE_OP: u16 = 6;
    pub(in crate::nft) const CMP_SREG: u16 = 1;
    pub(in crate::nft) const CMP_OP: u16 = 2;
    pub(in crate::nft) const CMP_DATA: u16 = 3;
    pub(in crate::nft) const RANGE_SREG: u16 = 1;
    pub(in crate::nft) const RANGE_OP: u16 = 2;
    pub(in crate::nft) const RANGE_FROM: u16 = 3;
    pub(in crate::nft) const RANGE_TO: u16 = 4;
    pub(in crate::nft) const OP_EQ: u32 = 0;
    pub(in crate::nft) const OP_NE: u32 = 1;
    pub(in crate::nft) const LOOKUP_SET: u16 = 1;
    pub(in crate::nft) const LOOKUP_SREG: u16 = 2;
    pub(in crate::nft) const LOOKUP_DREG: u16 = 3;
    pub(in crate::nft) const LOOKUP_FLAGS: u16 = 5;
    pub(in crate::nft) const LOOKUP_INVERT: u32 = 1;
    pub(in crate::nft) const PAYLOAD_DREG: u16 = 1;
    pub(in crate::nft) const PAYLOAD_BASE: u16 = 2;
    pub(in crate::nft) const PAYLOAD_OFFSET: u16 = 3;
    pub(in crate::nft) const PAYLOAD_LEN: u16 = 4;
    pub(in crate::nft) const PAYLOAD_NETWORK: u32 = 1;
    pub(in crate::nft) const PAYLOAD_TRANSPORT: u32 = 2;
    pub(in crate::nft) const META_DREG: u16 = 1;
    pub(in crate::nft) const META_KEY: u16 = 2;
    pub(in crate::nft) const META_SREG: u16 = 3;
    pub(in crate::nft) const META_MARK: u32 = 3;
    pub(in crate::nft) const META_IIFNAME: u32 = 6;
    pub(in crate::nft) const META_OIFNAME: u32 = 7;
    pub(in crate::nft) const META_SKUID: u32 = 10;
    pub(in crate::nft) const META_NFPROTO: u32 = 15;
    pub(in crate::nft) const META_L4PROTO: u32 = 16;
    pub(in crate::nft) const CT_DREG: u16 = 1;
    pub(in crate::nft) const CT_KEY: u16 = 2;
    pub(in crate::nft) const CT_SREG: u16 = 4;
    pub(in crate::nft) const CT_STATE: u32 = 0;
    pub(in crate::nft) const CT_STATUS: u32 = 2;
    pub(in crate::nft) const CT_MARK: u32 = 3;
    pub(in crate::nft) const CT_ZONE: u32 = 17;
    pub(in crate::nft) const NAT_TYPE: u16 = 1;
    pub(in crate::nft) const NAT_FAMILY: u16 = 2;
    pub(in crate::nft) const NAT_ADDR_MIN: u16 = 3;
    pub(in crate::nft) const NAT_ADDR_MAX: u16 = 4;
    pub(in crate::nft) const NAT_PROTO_MIN: u16 = 5;
    pub(in crate::nft) const NAT_PROTO_MAX: u16 = 6;
    pub(in crate::nft) const NAT_FLAGS: u16 = 7;
    pub(in crate::nft) const NAT_SNAT: u32 = 0;
    pub(in crate::nft) const NAT_DNAT: u32 = 1;
    pub(in crate::nft) const REDIR_PROTO_MIN: u16 = 1;
    pub(in crate::nft) const REDIR_PROTO_MAX: u16 = 2;
    pub(in crate::nft) const REDIR_FLAGS: u16 = 3;
    /// The range has addresses.
    pub(in crate::nft) const RANGE_IPS: u32 = 1;
    /// The range has ports.
    pub(in crate::nft) const RANGE_PORTS: u32 = 2;
    pub(in crate::nft) const REJECT_TYPE: u16 = 1;
    pub(in crate::nft) const REJECT_CODE: u16 = 2;
    pub(in crate::nft) const REJECT_ICMP: u32 = 0;
    pub(in crate::nft) const REJECT_TCP_RESET: u32 = 1;
    pub(in crate::nft) const REJECT_ICMPX: u32 = 2;
    pub(in crate::nft) const COUNTER_BYTES: u16 = 1;
    pub(in crate::nft) const COUNTER_PACKETS: u16 = 2;
    pub(in crate::nft) const NUMGEN_DREG: u16 = 1;
    pub(in crate::nft) const NUMGEN_MODULUS: u16 = 2;
    pub(in crate::nft) const NUMGEN_TYPE: u16 = 3;
    pub(in crate::nft) const NUMGEN_OFFSET: u16 = 4;
    pub(in crate::nft) const NUMGEN_INCREMENT: u32 = 0;
    pub(in crate::nft) const NUMGEN_RANDOM: u32 = 1;
    pub(in crate::nft) const SOCKET_KEY: u16 = 1;
    pub(in crate::nft) const SOCKET_DREG: u16 = 2;
    pub(in crate::nft) const SOCKET_TRANSPARENT: u32 = 0;
    pub(in crate::nft) const FIB_DREG: u16 = 1;
    pub(in crate::nft) const FIB_RESULT: u16 = 2;
    pub(in crate::nft) const FIB_FLAGS: u16 = 3;
    pub(in crate::nft) const FIB_ADDRTYPE: u32 = 3;
    pub(in crate::nft) const FIB_DADDR: u32 = 2;
}
