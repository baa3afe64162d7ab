//! Reads back what is in the kernel.

use nix::sys::socket::SockProtocol;

use super::consts::{chain, data, element, expr, msg, rule, set, table};
use super::encode;
use super::message::{comment, family_number, header, hook_number, kind, kind_name, policy_number};
use super::model::{Chain, Family, Set, SetValue, Table};
use crate::error::Error;
use crate::socket::Socket;
use crate::wire::{self, Message};

/// A table that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its chain.
    pub chain: String,
    /// What it is deleted by.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// Packets and bytes of its first counter, if it has one.
    pub counter: Option<(u64, u64)>,
}

/// A counter that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its rule's chain.
    pub chain: String,
    /// Its rule's comment.
    pub comment: Option<String>,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The tables of the namespace (of the families known here).
pub fn tables() -> Result<Vec<TableInfo>, Error> {
    let list = Message::new(kind(msg::GETTABLE), 0, &header(0));
    open()?.list(&list, "list the tables", |_, payload| {
        let number = *payload.first()?;
        let family = FAMILIES.into_iter().find(|family| family_number(*family) == number)?;
        let attributes = payload.get(HEADER_BYTES..)?;
        let name = wire::text(wire::find(attributes, table::NAME)?);
        Some(TableInfo { family, name, comment: wire::find(attributes, table::USERDATA).and_then(comment) })
    })
}

/// The rules of a table, chain by chain, in order. An absent table has none.
pub fn list(family: Family, table: &str) -> Result<Vec<Listed>, Error> {
    Ok(rules(&mut open()?, family, table)?.into_iter().map(|rule| rule.listed).collect())
}

/// The counters of a table's rules, in order. An absent table has none.
pub fn counters(family: Family, table: &str) -> Result<Vec<Counter>, Error> {
    let counter = |rule: Listed| {
        let (packets, bytes) = rule.counter?;
        Some(Counter { chain: rule.chain, comment: rule.comment, packets, bytes })
    };
    Ok(list(family, table)?.into_iter().filter_map(counter).collect())
}

/// How what is in the kernel differs from the table as it should be, one line each; nothing if it does not. Counts do
/// not matter.
pub fn differences(table: &Table) -> Result<Vec<String>, Error> {
    let mut socket = open()?;
    let here = tables()?.into_iter().find(|here| here.family == table.family && here.name == table.name);
    let Some(here) = here else { return Ok(vec![format!("table {} {} is absent", table.family, table.name)]) };
    let mut found = Vec::new();
    if here.comment != table.comment {
        found.push(format!("the table's comment is {:?}, not {:?}", here.comment, table.comment));
    }
    chain_differences(&mut socket, table, &mut found)?;
    rule_differences(&mut socket, table, &mut found)?;
    set_differences(&mut socket, table, &mut found)?;
    Ok(found)
}

fn chain_differences(socket: &mut Socket, table: &Table, found: &mut Vec<String>) -> Result<(), Error> {
    let mut here: Vec<ChainFacts> = in_table(socket, msg::GETCHAIN, chain::TABLE, table, |attributes| {
        let hook = wire::find(attributes, chain::HOOK);
        let hook_fact = |kind| hook.and_then(|hook| wire::find(hook, kind)).and_then(wire::be32);
        let base = match (hook_fact(chain::HOOK_NUMBER), hook_fact(chain::HOOK_PRIORITY)) {
            (Some(hook), Some(priority)) => {
                let policy = wire::find(attributes, chain::POLICY).and_then(wire::be32).unwrap_or_default();
                let kind = wire::find(attributes, chain::TYPE).map(wire::text).unwrap_or_default();
                Some((hook, priority.cast_signed(), policy, kind))
            }
            _ => None,
        };
        Some(ChainFacts { name: wire::text(wire::find(attributes, chain::NAME)?), base })
    })?;
    for chain in &table.chains {
        match here.iter().position(|facts| facts.name == chain.name) {
            None => found.push(format!("chain {} is absent", chain.name)),
            Some(index) if here.swap_remove(index).base != base_facts(chain) => {
                found.push(format!("chain {} is called in another way", chain.name));
            }
            Some(_) => {}
        }
    }
    found.extend(here.into_iter().map(|facts| format!("chain {} is not ours", facts.name)));
    Ok(())
}

struct ChainFacts {
    name: String,
    base: Option<(u32, i32, u32, String)>,
}

fn base_facts(chain: &Chain) -> Option<(u32, i32, u32, String)> {
    let base = chain.base?;
    Some((hook_number(base.hook), base.priority, policy_number(base), kind_name(base.kind).to_owned()))
}

fn rule_differences(socket: &mut Socket, table: &Table, found: &mut Vec<String>) -> Result<(), Error> {
    let here = rules(socket, table.family, &table.name)?;
    for chain in &table.chains {
        let mut in_chain = here.iter().filter(|rule| rule.listed.chain == chain.name);
        for (index, wanted) in chain.rules.iter().enumerate() {
            let place = format!("rule {} of chain {}", index + 1, chain.name);
            let expressions = encode::expressions(table.family, wanted)
                .map_err(|problem| Error::Invalid { action: format!("compare {place}"), problem })?;
            match in_chain.next() {
                None => found.push(format!("{place} is absent")),
                Some(rule) if rule.listed.comment != wanted.comment => {
                    found.push(format!("{place} has the comment {:?}", rule.listed.comment));
                }
                Some(rule) if rule.expressions != facts(expressions.as_bytes()) => {
                    found.push(format!("{place} is another"));
                }
                Some(_) => {}
            }
        }
        let more = in_chain.count();
        if more > 0 {
            found.push(format!("chain {} has {more} more rules", chain.name));
        }
    }
    Ok(())
}

fn set_differences(socket: &mut Socket, table: &Table, found: &mut Vec<String>) -> Result<(), Error> {
    let mut here: Vec<String> = in_table(socket, msg::GETSET, set::TABLE, table, |attributes| {
        wire::find(attributes, set::NAME).map(wire::text)
    })?;
    for set in &table.sets {
        let Some(index) = here.iter().position(|name| *name == set.name) else {
            found.push(format!("set {} is absent", set.name));
            continue;
        };
        here.swap_remove(index);
        let mut wanted = wanted_elements(set)?;
        let mut elements = elements(socket, table, set)?;
        wanted.sort();
        elements.sort();
        if wanted != elements {
            found.push(format!("set {} has other elements", set.name));
        }
    }
    found.extend(here.into_iter().map(|name| format!("set {name} is not ours")));
    Ok(())
}

type ElementFacts = (Vec<u8>, Vec<u8>);

fn wanted_elements(set: &Set) -> Result<Vec<ElementFacts>, Error> {
    let facts = |one| {
        let (key, value) = encode::element(set, one)?;
        let mut bytes = Message::fragment();
        bytes.attribute(data::VALUE, &key);
        Ok((bytes.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec()).unwrap_or_default()))
    };
    let all: Result<_, String> = set.elements.iter().map(facts).collect();
    all.map_err(|problem| Error::Invalid { action: format!("compare set {}", set.name), problem })
}

fn elements(socket: &mut Socket, table: &Table, set: &Set) -> Result<Vec<ElementFacts>, Error> {
    let mut list = Message::new(kind(msg::GETSETELEM), 0, &header(family_number(table.family)));
    list.text(element::LIST_TABLE, &table.name);
    list.text(element::LIST_SET, &set.name);
    let is_map = matches!(set.value, Some(SetValue::Data(_) | SetValue::Verdict));
    let pieces = socket.list(&list, &format!("list set {}", set.name), |_, payload| {
        let list = wire::find(payload.get(HEADER_BYTES..)?, element::LIST_ELEMENTS)?;
        let one = |(_, one)| {
            let value = if is_map { wire::find(one, element::DATA)?.to_vec() } else { Vec::new() };
            Some((wire::find(one, element::KEY)?.to_vec(), value))
        };
        wire::attributes(list).map(one).collect::<Option<Vec<_>>>()
    })?;
    Ok(pieces.into_iter().flatten().collect())
}

/// A rule with its expressions in a form that can be compared.
struct Rule {
    listed: Listed,
    expressions: Vec<Expression>,
}

/// Name and attributes, sorted by type.
type Expression = (String, Vec<(u16, Vec<u8>)>);

fn rules(socket: &mut Socket, family: Family, name: &str) -> Result<Vec<Rule>, Error> {
    in_table(socket, msg::GETRULE, rule::TABLE, &Table::new(family, name), |attributes| {
        let handle = wire::find(attributes, rule::HANDLE).and_then(wire::be64)?;
        let expressions = wire::find(attributes, rule::EXPRESSIONS).unwrap_or_default();
        let listed = Listed {
            chain: wire::text(wire::find(attributes, rule::CHAIN)?),
            handle,
            comment: wire::find(attributes, rule::USERDATA).and_then(comment),
            counter: counter(expressions),
        };
        Some(Rule { listed, expressions: facts(expressions) })
    })
}

/// What is of one table in a list. Old kernels list all tables, whichever is asked for.
fn in_table<T>(
    socket: &mut Socket,
    message: u16,
    table_attribute: u16,
    table: &Table,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut list = Message::new(kind(message), 0, &header(family_number(table.family)));
    list.text(table_attribute, &table.name);
    let action = format!("list what is in table {} {}", table.family, table.name);
    let listed = socket.list(&list, &action, |_, payload| {
        let attributes = payload.get(HEADER_BYTES..)?;
        let of_table = wire::find(attributes, table_attribute).map(wire::text)?;
        (of_table == table.name).then(|| read(attributes)).flatten()
    });
    match listed {
        Err(error) if error.is_absent() => Ok(Vec::new()),
        other => other,
    }
}

fn facts(expressions: &[u8]) -> Vec<Expression> {
    let one = |(_, expression)| {
        let name = wire::find(expression, rule::EXPR_NAME).map(wire::text).unwrap_or_default();
        let attributes = wire::find(expression, rule::EXPR_DATA).unwrap_or_default();
        let mut attributes: Vec<_> = wire::attributes(attributes).map(|(kind, value)| (kind, value.to_vec())).collect();
        attributes.sort();
        if name == "counter" {
            attributes.clear();
        }
        (name, attributes)
    };
    wire::attributes(expressions).map(one).collect()
}

/// Packets and bytes of the first counter.
fn counter(expressions: &[u8]) -> Option<(u64, u64)> {
    wire::attributes(expressions).find_map(|(_, expression)| {
        let name = wire::text(wire::find(expression, rule::EXPR_NAME)?);
        let attributes = wire::find(expression, rule::EXPR_DATA).filter(|_| name == "counter")?;
        let number = |kind| wire::find(attributes, kind).and_then(wire::be64);
        Some((number(expr::COUNTER_PACKETS)?, number(expr::COUNTER_BYTES)?))
    })
}

fn open() -> Result<Socket, Error> {
    Socket::open(SockProtocol::NetlinkNetFilter)
}

const FAMILIES: [Family; 3] = [Family::Inet, Family::Ip, Family::Ip6];
/// Size of nfnetlink's header.
const HEADER_BYTES: usize = 4;
