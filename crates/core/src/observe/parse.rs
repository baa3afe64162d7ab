//! Reads expressions: a text into tokens, tokens into a tree.

use regex::RegexBuilder;

use super::expression::{Attribute, Comparison, LONGEST, Method, Node};
use super::facts::Field;
use crate::model::Str;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Number(f64),
    Mark(&'static str),
}

/// Marks, longer ones first.
const MARKS: [&str; 20] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ".", ",", "+", "-", "?", ":", "%"];

/// How deep expressions nest.
const DEEPEST: usize = 32;

/// Bytes that a compiled regular expression may take.
const REGEX_BYTES: usize = 64 << 10;

/// Reads a whole expression.
pub(super) fn read(text: &str) -> Result<Node, String> {
    if text.len() > LONGEST {
        return Err(format!("{} bytes: at most {LONGEST} are accepted", text.len()));
    }
    let mut reader = Reader { tokens: tokens(text)?.into_iter().peekable(), depth: 0 };
    let node = reader.whole()?;
    match reader.tokens.next() {
        None => Ok(node),
        Some(token) => Err(format!("{} is not expected there", shown(&token))),
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Name(name) => format!("{name:?}"),
        Token::Text(text) => format!("the text {text:?}"),
        Token::Number(number) => format!("the number {number}"),
        Token::Mark(mark) => format!("{mark:?}"),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut left = text;
    loop {
        left = left.trim_start();
        let Some(first) = left.chars().next() else { return Ok(tokens) };
        if first.is_ascii_alphabetic() || first == '_' {
            let end = left.find(|one: char| !one.is_ascii_alphanumeric() && one != '_').unwrap_or(left.len());
            let (name, rest) = left.split_at(end);
            tokens.push(Token::Name(name.to_owned()));
            left = rest;
        } else if first.is_ascii_digit() {
            let end = left.find(|one: char| !one.is_ascii_digit() && one != '.').unwrap_or(left.len());
            let (digits, rest) = left.split_at(end);
            let number = digits.parse().map_err(|_| format!("{digits:?} is no number"))?;
            tokens.push(Token::Number(number));
            // Unsigned and plain numbers compare alike here.
            left = rest.strip_prefix('u').unwrap_or(rest);
        } else if first == '\'' || first == '"' {
            let (string, rest) = quoted(left, first)?;
            tokens.push(Token::Text(string));
            left = rest;
        } else {
            let mark = MARKS.into_iter().find(|mark| left.starts_with(mark));
            let mark = mark.ok_or_else(|| format!("{first:?} is not expected there"))?;
            tokens.push(Token::Mark(mark));
            left = left.get(mark.len()..).unwrap_or_default();
        }
    }
}

fn quoted(text: &str, mark: char) -> Result<(String, &str), String> {
    let mut string = String::new();
    let mut chars = text.chars();
    chars.next();
    while let Some(next) = chars.next() {
        match next {
            next if next == mark => return Ok((string, chars.as_str())),
            '\\' => match chars.next() {
                Some('n') => string.push('\n'),
                Some('t') => string.push('\t'),
                Some(next @ ('\\' | '\'' | '"')) => string.push(next),
                Some(next) => return Err(format!("\\{next} in a text is not supported")),
                None => break,
            },
            next => string.push(next),
        }
    }
    Err(format!("a text that no {mark} ends"))
}

struct Reader {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    depth: usize,
}

impl Reader {
    fn takes(&mut self, mark: &str) -> bool {
        self.tokens.next_if(|token| matches!(token, Token::Mark(one) if *one == mark)).is_some()
    }

    fn needs(&mut self, mark: &str) -> Result<(), String> {
        if self.takes(mark) {
            return Ok(());
        }
        match self.tokens.peek() {
            Some(token) => Err(format!("{mark:?} is missing before {}", shown(token))),
            None => Err(format!("{mark:?} is missing at the end")),
        }
    }

    fn whole(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("it nests deeper than {DEEPEST}"));
        }
        let node = self.either()?;
        let node = if self.takes("?") {
            let yes = self.whole()?;
            self.needs(":")?;
            let no = self.whole()?;
            Node::Chosen(node.into(), yes.into(), no.into())
        } else {
            node
        };
        self.depth -= 1;
        Ok(node)
    }

    fn either(&mut self) -> Result<Node, String> {
        let mut all = vec![self.both()?];
        while self.takes("||") {
            all.push(self.both()?);
        }
        balanced(all, Node::Either)
    }

    fn both(&mut self) -> Result<Node, String> {
        let mut all = vec![self.relation()?];
        while self.takes("&&") {
            all.push(self.relation()?);
        }
        balanced(all, Node::Both)
    }

    fn relation(&mut self) -> Result<Node, String> {
        let one = self.sum()?;
        let comparisons = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::AtMost),
            (">=", Comparison::AtLeast),
            ("<", Comparison::Less),
            (">", Comparison::More),
        ];
        for (mark, comparison) in comparisons {
            if self.takes(mark) {
                let other = self.sum()?;
                return Ok(Node::Compared(one.into(), comparison, other.into()));
            }
        }
        if self.tokens.next_if(|token| matches!(token, Token::Name(name) if name == "in")).is_some() {
            let all = self.sum()?;
            return Ok(Node::In(one.into(), all.into()));
        }
        Ok(one)
    }

    fn sum(&mut self) -> Result<Node, String> {
        let mut all = vec![self.single()?];
        while self.takes("+") {
            all.push(self.single()?);
        }
        balanced(all, Node::Joined)
    }

    fn single(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("it nests deeper than {DEEPEST}"));
        }
        let node = if self.takes("!") {
            Node::Not(self.single()?.into())
        } else if self.takes("-") {
            Node::Minus(self.single()?.into())
        } else {
            let primary = self.primary()?;
            self.methods(primary)?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn primary(&mut self) -> Result<Node, String> {
        match self.tokens.next() {
            Some(Token::Number(number)) => Ok(Node::Number(number)),
            Some(Token::Text(text)) => Ok(Node::Text(text.into())),
            Some(Token::Mark("(")) => {
                let inner = self.whole()?;
                self.needs(")")?;
                Ok(inner)
            }
            Some(Token::Mark("[")) => {
                let mut items = Vec::new();
                while !self.takes("]") {
                    if !items.is_empty() {
                        self.needs(",")?;
                    }
                    items.push(self.whole()?);
                }
                Ok(Node::List(items))
            }
            Some(Token::Name(name)) => match name.as_str() {
                "true" => Ok(Node::Bool(true)),
                "false" => Ok(Node::Bool(false)),
                _ if self.takes("(") => self.function(&name),
                _ => self.attribute(name),
            },
            Some(token) => Err(format!("{} is not expected there", shown(&token))),
            None => Err("something is missing at the end".to_owned()),
        }
    }

    fn function(&mut self, name: &str) -> Result<Node, String> {
        let argument = self.whole()?;
        self.needs(")")?;
        match (name, argument) {
            ("has", Node::Attribute(attribute)) => Ok(Node::Has(attribute)),
            ("has", _) => Err("has() is asked about attributes".to_owned()),
            ("size", argument) => Ok(Node::Size(argument.into())),
            ("string", argument) => Ok(Node::AsText(argument.into())),
            ("int" | "uint" | "double", argument) => Ok(Node::AsNumber(argument.into())),
            ("duration", Node::Text(text)) => {
                duration(&text).map(Node::Duration).ok_or_else(|| format!("{text:?} is no duration"))
            }
            (other, _) => Err(format!("the function {other}() is not supported: has, size, string, int, duration are")),
        }
    }

    fn attribute(&mut self, first: String) -> Result<Node, String> {
        let mut path = vec![first];
        loop {
            if !self.takes(".") {
                break;
            }
            match self.tokens.next() {
                Some(Token::Name(name)) if matches!(self.tokens.peek(), Some(Token::Mark("("))) => {
                    let attribute = named(&path, None)?;
                    self.needs("(")?;
                    let called = self.method(Node::Attribute(attribute), &name)?;
                    return Ok(called);
                }
                Some(Token::Name(name)) => path.push(name),
                _ => return Err(format!("a name is missing after {}.", path.join("."))),
            }
        }
        let key = if self.takes("[") {
            let key = match self.tokens.next() {
                Some(Token::Text(key)) => key,
                _ => return Err(format!("{}[…] needs a text", path.join("."))),
            };
            self.needs("]")?;
            Some(key)
        } else {
            None
        };
        named(&path, key.as_deref()).map(Node::Attribute)
    }

    fn methods(&mut self, mut node: Node) -> Result<Node, String> {
        while self.takes(".") {
            let Some(Token::Name(name)) = self.tokens.next() else {
                return Err("a method's name is missing after .".to_owned());
            };
            self.needs("(")?;
            node = self.method(node, &name)?;
        }
        Ok(node)
    }

    /// A method behind its `(`.
    fn method(&mut self, node: Node, name: &str) -> Result<Node, String> {
        if name == "size" {
            self.needs(")")?;
            return Ok(Node::Size(node.into()));
        }
        if !["startsWith", "endsWith", "contains", "matches"].contains(&name) {
            return Err(format!(
                "the method {name}() is not supported: startsWith, endsWith, contains, matches, size are"
            ));
        }
        let argument = self.whole()?;
        self.needs(")")?;
        let method = match (name, argument) {
            ("matches", Node::Text(pattern)) => {
                let regex = RegexBuilder::new(&pattern).size_limit(REGEX_BYTES).build();
                let regex = regex.map_err(|_| format!("{pattern:?} is no regular expression, or too large"))?;
                return Ok(Node::Matches(node.into(), regex));
            }
            ("matches", _) => return Err("matches() needs a text".to_owned()),
            ("startsWith", argument) => (Method::StartsWith, argument),
            ("endsWith", argument) => (Method::EndsWith, argument),
            (_, argument) => (Method::Contains, argument),
        };
        Ok(Node::Called(node.into(), method.0, method.1.into()))
    }
}

/// Chains of one operator do not nest by their length.
fn balanced(mut all: Vec<Node>, join: fn(Box<Node>, Box<Node>) -> Node) -> Result<Node, String> {
    while all.len() > 1 {
        let mut halved = Vec::with_capacity(all.len().div_ceil(2));
        let mut left = all.into_iter();
        while let Some(one) = left.next() {
            halved.push(match left.next() {
                Some(other) => join(one.into(), other.into()),
                None => one,
            });
        }
        all = halved;
    }
    all.pop().ok_or_else(|| "nothing is there".to_owned())
}

fn named(path: &[String], key: Option<&str>) -> Result<Attribute, String> {
    let name = path.join(".");
    let header = |key: &str| Str::from(key.to_ascii_lowercase());
    match (path.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), key) {
        (["request", "headers"], Some(key)) => return Ok(Attribute::Request(header(key))),
        (["response", "headers"], Some(key)) => return Ok(Attribute::Response(header(key))),
        (["request", "headers", key], None) => return Ok(Attribute::Request(header(key))),
        (["response", "headers", key], None) => return Ok(Attribute::Response(header(key))),
        (["request", "headers"], None) => return Ok(Attribute::Headers { of_request: true }),
        (["response", "headers"], None) => return Ok(Attribute::Headers { of_request: false }),
        _ => {}
    }
    let known = Field::ALL.iter().find(|(_, _, attribute)| !attribute.is_empty() && *attribute == name);
    match (known, key) {
        (Some((field, ..)), None) => Ok(Attribute::Field(*field)),
        (_, key) => {
            let key = key.map(|key| format!("[{key:?}]")).unwrap_or_default();
            Err(format!("the attribute {name}{key} is not supported"))
        }
    }
}

/// As CEL writes them: `1h30m`, `1.5s`, `200ms`. Microseconds.
fn duration(text: &str) -> Option<i64> {
    let (mut left, mut micros) = (text, 0.0_f64);
    while !left.is_empty() {
        let end = left.find(|one: char| !one.is_ascii_digit() && one != '.')?;
        let (number, rest) = left.split_at(end);
        let unit_end = rest.find(|one: char| one.is_ascii_digit() || one == '.').unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit_end);
        let scale = match unit {
            "h" => 3_600_000_000.0,
            "m" => 60_000_000.0,
            "s" => 1_000_000.0,
            "ms" => 1000.0,
            "us" => 1.0,
            _ => return None,
        };
        micros += number.parse::<f64>().ok()? * scale;
        left = rest;
    }
    (!text.is_empty() && micros < 9.0e15).then_some(micros as i64)
}
