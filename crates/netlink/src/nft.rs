//! nf_tables: tables, chains, rules, sets and maps as plain data, applied in one atomic transaction.
//!
//! ```no_run
//! use stillmesh_netlink::nft::*;
//! let table = Table::new(Family::Inet, "example").chain(
//!     Chain::base("output", Kind::Nat, Hook::Output, -100)
//!         .rule(Rule::new([eq(Field::L4Proto, TCP), syn_only(), ne(Field::TcpDport, 15008u16), redirect(15001)]))
//! );
//! let mut batch = Batch::new();
//! batch.replace_table(&table);
//! apply(&batch)?;
//! # Ok::<(), stillmesh_netlink::Error>(())
//! ```

mod apply;
mod batch;
mod consts;
mod encode;
mod expr;
mod list;
mod message;
mod model;

pub use apply::apply;
pub use batch::Batch;
pub use expr::{
    Compare, Expr, Field, Key, MarkSource, NatTarget, Reject, SYN, TCP, UDP, Value, Verdict, accept, any_of, counter,
    drop, eq, goto, in_cidr, in_set, jump, masked_eq, masked_ne, masquerade, ne, none_of, redirect, reject_tcp_reset,
    ret, set_ct_mark, set_ct_zone, set_meta_mark, syn_only,
};
pub use list::{Counter, Listed, TableInfo, counters, differences, list, tables};
pub use model::{Base, Chain, DataType, Element, Family, Hook, Kind, Policy, Rule, Set, SetValue, Table};
