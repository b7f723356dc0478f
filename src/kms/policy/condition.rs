//! One condition of a statement: operator, key, values. Knows the request's keys, not what the statement is about.
//!
//! A key that no request can have, and a variable or value that cannot be read, never help an Allow: there the condition
//! fails, also where its operator asks for the opposite or for absence. In a Deny such a key is absent, as IAM has it.

use std::net::IpAddr;

use data_encoding::BASE64;

use super::context::{Context, is_known};
use super::document::Effect;
use super::json::Json;
use super::pattern::{Match, Pattern, Syntax};
use super::values::{Network, boolean, date, number};

/// How a set of values in the request is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    One,
    ForAllValues,
    ForAnyValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: PartialOrd>(self, request: T, policy: T) -> bool {
        match self {
            Order::Equal => request == policy,
            Order::Less => request < policy,
            Order::LessOrEqual => request <= policy,
            Order::Greater => request > policy,
            Order::GreaterOrEqual => request >= policy,
        }
    }
}

/// The values of the document, by the kind of the operator.
#[derive(Debug, Clone, PartialEq)]
enum Values {
    /// StringEquals and StringLike: the syntax of the pattern makes the difference.
    Text(Vec<Pattern>),
    TextIgnoringCase(Vec<Pattern>),
    Arn(Vec<Pattern>),
    Number(Order, Vec<f64>),
    Date(Order, Vec<i64>),
    Bool(Vec<bool>),
    Binary(Vec<Vec<u8>>),
    Address(Vec<Network>),
    /// The key is absent.
    Null(Vec<bool>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    quantifier: Quantifier,
    if_exists: bool,
    negated: bool,
    /// In lower case.
    key: String,
    known: bool,
    values: Values,
}

impl Condition {
    /// The element `Condition`; `variables` says whether the document's version has them.
    pub fn parse_all(json: &Json, variables: bool) -> Result<Vec<Self>, String> {
        let object = |json: &'_ Json| match json {
            Json::Object(members) => Ok(members.clone()),
            _ => Err("a condition is no object".to_owned()),
        };
        let mut conditions = Vec::new();
        for (operator, keys) in object(json)? {
            for (key, values) in object(&keys)? {
                conditions.push(Self::parse(&operator, &key, &values, variables)?);
            }
        }
        Ok(conditions)
    }
    fn parse(operator: &str, key: &str, values: &Json, variables: bool) -> Result<Self, String> {
        let (quantifier, rest) = match operator.split_once(':') {
            None => (Quantifier::One, operator),
            Some(("ForAllValues", rest)) => (Quantifier::ForAllValues, rest),
            Some(("ForAnyValue", rest)) => (Quantifier::ForAnyValue, rest),
            Some(_) => return Err("a set operator of a condition is unknown".to_owned()),
        };
        let (name, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |name| (name, true));
        if name == "Null" && (if_exists || quantifier != Quantifier::One) {
            return Err("Null stands alone as a condition operator".to_owned());
        }
        if !key.contains(':') || key.ends_with(':') || key.starts_with(':') {
            return Err("a condition names no condition key".to_owned());
        }
        let texts: Option<Vec<String>> = values.members().iter().map(Json::scalar).collect();
        let texts = texts.filter(|texts| !texts.is_empty()).ok_or("a condition has no values, or no plain ones")?;
        let (values, negated) = typed(name, &texts, variables)?;
        let key = key.to_lowercase();
        Ok(Self { quantifier, if_exists, negated, known: is_known(&key), key, values })
    }

    pub fn holds(&self, context: &Context, effect: Effect) -> bool {
        if !self.known && effect == Effect::Allow {
            return false;
        }
        let present = context.values(&self.key);
        if let Values::Null(wanted) = &self.values {
            return wanted.contains(&present.is_empty());
        }
        let test = |value: &String| self.test(value, context, effect);
        match (self.quantifier, present) {
            (Quantifier::ForAllValues, []) => true,
            (Quantifier::ForAnyValue, []) => self.if_exists,
            (Quantifier::One, []) => self.if_exists || self.negated,
            (Quantifier::ForAllValues, values) => values.iter().all(test),
            (Quantifier::ForAnyValue, values) => values.iter().any(test),
            // Several values where one was expected: whatever allows less.
            (Quantifier::One, values) if effect == Effect::Allow => values.iter().all(test),
            (Quantifier::One, values) => values.iter().any(test),
        }
    }
    /// One value of the request against all of the document: any of them for an operator, none of them for its opposite.
    fn test(&self, value: &str, context: &Context, effect: Effect) -> bool {
        let mut doubt = false;
        for said in self.values.compare(value, context) {
            match said {
                Match::Yes => return !self.negated,
                Match::No => {}
                Match::Doubt => doubt = true,
            }
        }
        if doubt && effect == Effect::Allow { false } else { self.negated }
    }
}

/// The values of an operator, and whether it asks for the opposite.
fn typed(operator: &str, texts: &[String], variables: bool) -> Result<(Values, bool), String> {
    let patterns = |wildcards| {
        let syntax = Syntax { wildcards, variables };
        texts.iter().map(|text| Pattern::parse(text, syntax)).collect::<Result<Vec<_>, _>>()
    };
    let arns = || {
        let arns = patterns(true)?;
        if arns.iter().all(Pattern::is_arn) { Ok(arns) } else { Err("a condition's value is no ARN".to_owned()) }
    };
    let (family, order) = ["Numeric", "Date"]
        .iter()
        .find_map(|family| operator.strip_prefix(family).map(|order| (*family, order)))
        .unwrap_or(("", operator));
    if !family.is_empty() {
        let (order, negated) = match order {
            "Equals" => (Order::Equal, false),
            "NotEquals" => (Order::Equal, true),
            "LessThan" => (Order::Less, false),
            "LessThanEquals" => (Order::LessOrEqual, false),
            "GreaterThan" => (Order::Greater, false),
            "GreaterThanEquals" => (Order::GreaterOrEqual, false),
            _ => return Err("a condition operator is unknown".to_owned()),
        };
        let values = match family {
            "Numeric" => Values::Number(order, each(texts, number)?),
            _ => Values::Date(order, each(texts, date)?),
        };
        return Ok((values, negated));
    }
    Ok(match operator {
        "StringEquals" => (Values::Text(patterns(false)?), false),
        "StringNotEquals" => (Values::Text(patterns(false)?), true),
        "StringLike" => (Values::Text(patterns(true)?), false),
        "StringNotLike" => (Values::Text(patterns(true)?), true),
        "StringEqualsIgnoreCase" => (Values::TextIgnoringCase(patterns(false)?), false),
        "StringNotEqualsIgnoreCase" => (Values::TextIgnoringCase(patterns(false)?), true),
        "ArnEquals" | "ArnLike" => (Values::Arn(arns()?), false),
        "ArnNotEquals" | "ArnNotLike" => (Values::Arn(arns()?), true),
        "Bool" => (Values::Bool(each(texts, boolean)?), false),
        "BinaryEquals" => (Values::Binary(each(texts, |text| BASE64.decode(text.as_bytes()).ok())?), false),
        "IpAddress" => (Values::Address(each(texts, Network::parse)?), false),
        "NotIpAddress" => (Values::Address(each(texts, Network::parse)?), true),
        "Null" => (Values::Null(each(texts, boolean)?), false),
        _ => return Err("a condition operator is unknown".to_owned()),
    })
}
fn each<T>(texts: &[String], read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let values: Option<Vec<T>> = texts.iter().map(|text| read(text)).collect();
    values.ok_or_else(|| "a condition's value is not of its operator's kind".to_owned())
}

impl Values {
    /// What each value of the document says of `request`.
    fn compare(&self, request: &str, context: &Context) -> Vec<Match> {
        fn all<R, T>(request: Option<R>, values: &[T], holds: impl Fn(&R, &T) -> bool) -> Vec<Match> {
            values.iter().map(|v| request.as_ref().map_or(Match::Doubt, |r| holds(r, v).into())).collect()
        }
        match self {
            Values::Text(patterns) => patterns.iter().map(|p| p.matches(request, context)).collect(),
            Values::TextIgnoringCase(patterns) => {
                patterns.iter().map(|p| p.equals_ignoring_case(request, context)).collect()
            }
            Values::Arn(patterns) => patterns.iter().map(|p| p.matches_arn(request, context)).collect(),
            Values::Number(order, values) => all(number(request), values, |r, v| order.holds(*r, *v)),
            Values::Date(order, values) => all(date(request), values, |r, v| order.holds(*r, *v)),
            Values::Bool(values) => all(boolean(request), values, |r, v| r == v),
            Values::Binary(values) => all(BASE64.decode(request.as_bytes()).ok(), values, |r, v| r == v),
            Values::Address(values) => all(request.parse::<IpAddr>().ok(), values, |r, v| v.contains(*r)),
            Values::Null(_) => Vec::new(),
        }
    }
}
