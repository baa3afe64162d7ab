//! Operations that are carried out together or not at all.

use super::model::{Chain, Element, Family, Rule, Set, Table};

/// One atomic transaction, in the order in which its operations were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(super) operations: Vec<Operation>,
}

/// The parts that a batch is made of, each with the table that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) family: Family,
    pub(super) table: String,
    pub(super) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    AddTable { comment: Option<String> },
    DeleteTable,
    AddChain(Chain),
    FlushChain { chain: String },
    DeleteChain { chain: String },
    AddRule { chain: String, position: usize, rule: Rule },
    DeleteRule { chain: String, handle: u64 },
    AddSet(Set),
    DeleteSet { set: String },
    AddElements { set: Set, elements: Vec<Element> },
    DeleteElements { set: Set, elements: Vec<Element> },
    FlushSet { set: String },
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    fn push(&mut self, family: Family, table: &str, what: What) {
        self.operations.push(Operation { family, table: table.to_owned(), what });
    }

    /// Puts the table in place exactly as given, whatever was there under its name. Counters start anew.
    pub fn replace_table(&mut self, table: &Table) {
        self.delete_table(table.family, &table.name);
        self.add_table(table);
    }

    /// Adds the table and all that is in it. Chains and sets that are there stay; rules are added at the end.
    pub fn add_table(&mut self, table: &Table) {
        let (family, name) = (table.family, table.name.as_str());
        self.push(family, name, What::AddTable { comment: table.comment.clone() });
        // Chains before what jumps to them, sets before what looks in them.
        for chain in &table.chains {
            self.add_chain(family, name, &Chain { rules: Vec::new(), ..chain.clone() });
        }
        for set in &table.sets {
            self.add_set(family, name, set);
        }
        for chain in &table.chains {
            for (position, rule) in chain.rules.iter().enumerate() {
                let what = What::AddRule { chain: chain.name.clone(), position, rule: rule.clone() };
                self.push(family, name, what);
            }
        }
    }

    /// Deletes the table with all that is in it. An absent one is fine.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        // Added first, so that there is one to delete.
        self.push(family, table, What::AddTable { comment: None });
        self.push(family, table, What::DeleteTable);
    }

    /// Adds a chain (one that is there stays) and its rules at its end.
    pub fn add_chain(&mut self, family: Family, table: &str, chain: &Chain) {
        self.push(family, table, What::AddChain(Chain { rules: Vec::new(), ..chain.clone() }));
        for (position, rule) in chain.rules.iter().enumerate() {
            self.push(family, table, What::AddRule { chain: chain.name.clone(), position, rule: rule.clone() });
        }
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.push(family, table, What::FlushChain { chain: chain.to_owned() });
    }

    /// Deletes a chain, which must have no rules and not be jumped to.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.push(family, table, What::DeleteChain { chain: chain.to_owned() });
    }

    /// Puts a chain's rules in place exactly as given; the chain is made if absent.
    pub fn replace_rules(&mut self, family: Family, table: &str, chain: &Chain) {
        self.add_chain(family, table, &Chain { rules: Vec::new(), ..chain.clone() });
        self.flush_chain(family, table, &chain.name);
        self.add_chain(family, table, chain);
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) {
        self.push(family, table, What::AddRule { chain: chain.to_owned(), position: 0, rule: rule.clone() });
    }

    /// Deletes a rule by the handle that [`super::list`] tells.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        self.push(family, table, What::DeleteRule { chain: chain.to_owned(), handle });
    }

    /// Adds a set or map (one that is there stays) and its elements.
    pub fn add_set(&mut self, family: Family, table: &str, set: &Set) {
        let empty = Set { elements: Vec::new(), ..set.clone() };
        self.push(family, table, What::AddSet(empty));
        self.add_elements(family, table, set, set.elements.clone());
    }

    /// Deletes a set or map that no rule looks in.
    pub fn delete_set(&mut self, family: Family, table: &str, set: &str) {
        self.push(family, table, What::DeleteSet { set: set.to_owned() });
    }

    /// Adds elements to a set or map that is there; `set` says its types.
    pub fn add_elements(&mut self, family: Family, table: &str, set: &Set, elements: Vec<Element>) {
        if !elements.is_empty() {
            let set = Set { elements: Vec::new(), ..set.clone() };
            self.push(family, table, What::AddElements { set, elements });
        }
    }

    /// Deletes elements of a set or map; each must be there.
    pub fn delete_elements(&mut self, family: Family, table: &str, set: &Set, elements: Vec<Element>) {
        if !elements.is_empty() {
            let set = Set { elements: Vec::new(), ..set.clone() };
            self.push(family, table, What::DeleteElements { set, elements });
        }
    }

    /// Deletes all elements of a set or map.
    pub fn flush_set(&mut self, family: Family, table: &str, set: &str) {
        self.push(family, table, What::FlushSet { set: set.to_owned() });
    }
}
