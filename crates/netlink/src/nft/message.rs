//! A batch's operations as messages, each with words for what it does.

use super::batch::{Batch, Operation, What};
use super::consts::{BATCH_BEGIN, BATCH_END, SUBSYSTEM, chain, data, element, msg, rule, set, table};
use super::encode::{self, Problem};
use super::model::{Base, Chain, Element, Family, Hook, Kind, Policy, Rule, Set, SetValue};
use crate::error::Error;
use crate::wire::{APPEND, CREATE, Message, REQUEST};

/// One message of a batch, and what it does in words.
pub(super) struct Step {
    pub(super) message: Message,
    pub(super) action: String,
}

/// The type of a message of nf_tables.
pub(super) const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// nfnetlink's header: family, version, and a number that only batches use.
pub(super) fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

pub(super) fn begin() -> Message {
    Message::new(BATCH_BEGIN, REQUEST, &[0, 0, 0, SUBSYSTEM as u8])
}

pub(super) fn end() -> Message {
    Message::new(BATCH_END, REQUEST, &[0, 0, 0, SUBSYSTEM as u8])
}

/// All messages of a batch but the first and last.
pub(super) fn steps(batch: &Batch) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::with_capacity(batch.operations.len());
    let mut set_id = 0;
    for operation in &batch.operations {
        let action = operation.to_string();
        let messages = operation.messages(&mut set_id);
        let messages = messages.map_err(|problem| Error::Invalid { action: action.clone(), problem })?;
        steps.extend(messages.into_iter().map(|message| Step { message, action: action.clone() }));
    }
    Ok(steps)
}

impl Operation {
    fn message(&self, message: u16, flags: u16) -> Message {
        Message::new(kind(message), REQUEST | flags, &header(family_number(self.family)))
    }

    fn messages(&self, set_id: &mut u32) -> Result<Vec<Message>, Problem> {
        let message = match &self.what {
            What::AddTable { comment } => {
                let mut message = self.message(msg::NEWTABLE, CREATE);
                message.text(table::NAME, &self.table);
                if let Some(comment) = comment {
                    message.attribute(table::USERDATA, &user_data(comment)?);
                }
                message
            }
            What::DeleteTable => {
                let mut message = self.message(msg::DELTABLE, 0);
                message.text(table::NAME, &self.table);
                message
            }
            What::AddChain(chain) => self.add_chain(chain),
            What::DeleteChain { chain: name } => {
                let mut message = self.message(msg::DELCHAIN, 0);
                message.text(chain::TABLE, &self.table);
                message.text(chain::NAME, name);
                message
            }
            What::AddRule { chain, rule, .. } => self.add_rule(chain, rule)?,
            What::FlushChain { chain } => self.delete_rules(chain, None),
            What::DeleteRule { chain, handle } => self.delete_rules(chain, Some(*handle)),
            What::AddSet(set) => {
                *set_id += 1;
                self.add_set(set, *set_id)?
            }
            What::DeleteSet { set: name } => {
                let mut message = self.message(msg::DELSET, 0);
                message.text(set::TABLE, &self.table);
                message.text(set::NAME, name);
                message
            }
            What::FlushSet { set } => self.elements(msg::DELSETELEM, 0, set),
            What::AddElements { set, elements } => {
                return self.element_messages(msg::NEWSETELEM, CREATE, set, elements);
            }
            What::DeleteElements { set, elements } => return self.element_messages(msg::DELSETELEM, 0, set, elements),
        };
        Ok(vec![message])
    }

    fn add_chain(&self, given: &Chain) -> Message {
        let mut message = self.message(msg::NEWCHAIN, CREATE);
        message.text(chain::TABLE, &self.table);
        message.text(chain::NAME, &given.name);
        if let Some(base) = given.base {
            message.nested(chain::HOOK, |out| {
                out.be32(chain::HOOK_NUMBER, hook_number(base.hook));
                out.be32(chain::HOOK_PRIORITY, base.priority.cast_unsigned());
            });
            message.be32(chain::POLICY, policy_number(base));
            message.text(chain::TYPE, kind_name(base.kind));
        }
        message
    }

    fn add_rule(&self, chain: &str, given: &Rule) -> Result<Message, Problem> {
        let expressions = encode::expressions(self.family, given)?;
        let mut message = self.message(msg::NEWRULE, CREATE | APPEND);
        message.text(rule::TABLE, &self.table);
        message.text(rule::CHAIN, chain);
        message.nested(rule::EXPRESSIONS, |out| out.append(&expressions));
        if let Some(comment) = &given.comment {
            message.attribute(rule::USERDATA, &user_data(comment)?);
        }
        Ok(message)
    }

    fn delete_rules(&self, chain: &str, handle: Option<u64>) -> Message {
        let mut message = self.message(msg::DELRULE, 0);
        message.text(rule::TABLE, &self.table);
        message.text(rule::CHAIN, chain);
        if let Some(handle) = handle {
            message.be64(rule::HANDLE, handle);
        }
        message
    }

    fn add_set(&self, given: &Set, id: u32) -> Result<Message, Problem> {
        let mut message = self.message(msg::NEWSET, CREATE);
        message.text(set::TABLE, &self.table);
        message.text(set::NAME, &given.name);
        message.be32(set::FLAGS, if given.value.is_some() { set::FLAG_MAP } else { 0 });
        let (number, length) = encode::set_type(&given.key)?;
        message.be32(set::KEY_TYPE, number);
        message.be32(set::KEY_LEN, length);
        match &given.value {
            None => {}
            Some(SetValue::Verdict) => message.be32(set::DATA_TYPE, set::TYPE_VERDICT),
            Some(SetValue::Data(parts)) => {
                let (number, length) = encode::set_type(parts)?;
                message.be32(set::DATA_TYPE, number);
                message.be32(set::DATA_LEN, length);
            }
        }
        message.be32(set::ID, id);
        Ok(message)
    }

    /// A message about elements, without elements.
    fn elements(&self, message: u16, flags: u16, set: &str) -> Message {
        let mut message = self.message(message, flags);
        message.text(element::LIST_TABLE, &self.table);
        message.text(element::LIST_SET, set);
        message
    }

    /// As many messages as the elements need: a list of elements is at most 64 KiB.
    fn element_messages(&self, message: u16, flags: u16, set: &Set, all: &[Element]) -> Result<Vec<Message>, Problem> {
        let mut messages = Vec::new();
        for some in all.chunks(ELEMENTS) {
            let mut list = Message::fragment();
            for one in some {
                let (key, value) = encode::element(set, one)?;
                list.nested(rule::LIST_ELEMENT, |out| {
                    out.nested(element::KEY, |out| out.attribute(data::VALUE, &key));
                    if let Some(value) = &value {
                        out.nested(element::DATA, |out| out.append(value));
                    }
                });
            }
            let mut message = self.elements(message, flags, &set.name);
            message.nested(element::LIST_ELEMENTS, |out| out.append(&list));
            messages.push(message);
        }
        Ok(messages)
    }
}

/// Elements in one message: each is at most 200 bytes, with a chain's name in it.
const ELEMENTS: usize = 256;

pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(super) fn policy_number(base: Base) -> u32 {
    match base.policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Filter => "filter",
        Kind::Nat => "nat",
        Kind::Route => "route",
    }
}

/// Longest comment, its terminating NUL not counted.
const COMMENT_BYTES: usize = 127;

/// A comment as the `nft` program stores it: type 0, length, text, NUL.
fn user_data(comment: &str) -> Result<Vec<u8>, Problem> {
    if comment.len() > COMMENT_BYTES || comment.contains('\0') {
        return Err(format!("the comment {comment:?} is longer than {COMMENT_BYTES} bytes or has a NUL in it"));
    }
    let length = u8::try_from(comment.len() + 1).unwrap_or_default();
    let mut bytes = vec![0, length];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

/// The comment in user data, if there is one.
pub(super) fn comment(mut user_data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = user_data {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            return Some(crate::wire::text(value));
        }
        user_data = rest;
    }
    None
}

impl std::fmt::Display for Operation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = format!("table {} {}", self.family, self.table);
        match &self.what {
            What::AddTable { .. } => write!(out, "add {place}"),
            What::DeleteTable => write!(out, "delete {place}"),
            What::AddChain(chain) => write!(out, "add chain {} to {place}", chain.name),
            What::FlushChain { chain } => write!(out, "flush chain {chain} of {place}"),
            What::DeleteChain { chain } => write!(out, "delete chain {chain} of {place}"),
            What::AddRule { chain, position, rule } => {
                write!(out, "add rule {} ", position + 1)?;
                if let Some(comment) = &rule.comment {
                    write!(out, "({comment}) ")?;
                }
                write!(out, "to chain {chain} of {place}")
            }
            What::DeleteRule { chain, handle } => write!(out, "delete rule {handle} of chain {chain} of {place}"),
            What::AddSet(set) => write!(out, "add set {} to {place}", set.name),
            What::DeleteSet { set } => write!(out, "delete set {set} of {place}"),
            What::AddElements { set, elements } => {
                write!(out, "add {} elements to set {} of {place}", elements.len(), set.name)
            }
            What::DeleteElements { set, elements } => {
                write!(out, "delete {} elements of set {} of {place}", elements.len(), set.name)
            }
            What::FlushSet { set } => write!(out, "flush set {set} of {place}"),
        }
    }
}
