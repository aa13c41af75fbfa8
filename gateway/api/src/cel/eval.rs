//! The evaluation of a program, step by step, each of which costs.

use std::cmp::Ordering;
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::{Context, ExecutionError, Value};

use super::compile::{Call, Fold, Node, Operator, Program};
use super::{Error, PER_CALL, value};

type Outcome = Result<Value, Error>;

/// Variables, the innermost first.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    names: Names<'a>,
    parent: Option<&'a Scope<'a>>,
    access: Option<&'a dyn Access>,
}

#[derive(Clone, Copy)]
enum Names<'a> {
    One(&'a str, &'a Value),
    Many(&'a [(&'a str, Value)]),
}

/// Answers for the variable `authorizer`: whether the user of a request may do something.
pub trait Access: Sync {
    /// Whether it is allowed. `check` has the fields of the question: `path` or `group`, `resource`, `subresource`,
    /// `namespace`, `name`, and `verb`.
    fn allowed(&self, check: &serde_json::Value) -> bool;
}

impl<'a> Scope<'a> {
    /// No variables.
    pub fn root() -> Self {
        Self { names: Names::Many(&[]), parent: None, access: None }
    }

    /// This and more variables.
    #[must_use]
    pub fn with_all(&'a self, variables: &'a [(&'a str, Value)]) -> Self {
        Self { names: Names::Many(variables), parent: Some(self), access: self.access }
    }

    /// This, with answers for `authorizer`.
    #[must_use]
    pub fn with_access(self, access: &'a dyn Access) -> Self {
        Self { access: Some(access), ..self }
    }

    fn with(&'a self, name: &'a str, value: &'a Value) -> Self {
        Self { names: Names::One(name, value), parent: Some(self), access: self.access }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let here = match &self.names {
            Names::One(known, value) => (*known == name).then_some(*value),
            Names::Many(variables) => variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value),
        };
        here.or_else(|| self.parent?.get(name))
    }
}

/// What is left to spend.
#[derive(Debug)]
pub struct Budget {
    left: u64,
    call: u64,
}

impl Budget {
    /// So many steps for all evaluations.
    pub fn new(steps: u64) -> Self {
        Self { left: steps, call: 0 }
    }

    /// Whether nothing is left.
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    fn spend(&mut self, steps: u64) -> Result<(), Error> {
        if steps > self.call {
            return Err(Error::CallCost);
        }
        self.call -= steps;
        if steps > self.left {
            self.left = 0;
            return Err(Error::Budget);
        }
        self.left -= steps;
        Ok(())
    }
}

impl Program {
    /// The value of the expression.
    ///
    /// # Errors
    /// When it has none, or finding it costs too much.
    pub fn evaluate(&self, scope: &Scope<'_>, budget: &mut Budget) -> Outcome {
        budget.call = PER_CALL;
        evaluate(&self.root, scope, budget)
    }
}

fn failed(text: impl Into<String>) -> Error {
    Error::Failed(text.into())
}

fn no_overload() -> Error {
    failed("no such overload")
}

fn evaluate(node: &Node, scope: &Scope<'_>, budget: &mut Budget) -> Outcome {
    budget.spend(1)?;
    match node {
        Node::Literal(value) => Ok(value.clone()),
        Node::Ident(name) => scope.get(name).cloned().ok_or_else(|| failed(format!("no such attribute(s): {name}"))),
        Node::Select { operand, field } => {
            let operand = evaluate(operand, scope, budget)?;
            if let Some(optional) = optional(&operand) {
                return Ok(wrap(optional.value().and_then(|value| member(value, field).ok())));
            }
            member(&operand, field)
        }
        Node::Has { operand, field } => {
            let operand = evaluate(operand, scope, budget)?;
            match &operand {
                Value::Map(map) => Ok(Value::Bool(map.get(&key_of(field)).is_some())),
                _ if optional(&operand).is_some() => {
                    let inner = optional(&operand).and_then(OptionalValue::value);
                    Ok(Value::Bool(inner.is_some_and(|value| member(value, field).is_ok())))
                }
                _ => Err(no_overload()),
            }
        }
        Node::And(left, right) => both(left, right, scope, budget, false),
        Node::Or(left, right) => both(left, right, scope, budget, true),
        Node::Not(operand) => Ok(Value::Bool(!truth(evaluate(operand, scope, budget)?)?)),
        Node::NotFalse(operand) => match evaluate(operand, scope, budget) {
            Ok(Value::Bool(value)) => Ok(Value::Bool(value)),
            Err(error @ (Error::Budget | Error::CallCost)) => Err(error),
            _ => Ok(Value::Bool(true)),
        },
        Node::Choose(parts) => {
            let [condition, yes, no] = &**parts;
            let chosen = if truth(evaluate(condition, scope, budget)?)? { yes } else { no };
            evaluate(chosen, scope, budget)
        }
        Node::Negate(operand) => match evaluate(operand, scope, budget)? {
            Value::Int(value) => value.checked_neg().map(Value::Int).ok_or_else(|| failed("integer overflow")),
            Value::Float(value) => Ok(Value::Float(-value)),
            _ => Err(no_overload()),
        },
        Node::Operate(operator, left, right) => {
            let (left, right) = (evaluate(left, scope, budget)?, evaluate(right, scope, budget)?);
            operate(*operator, left, right, budget)
        }
        Node::OptionalSelect(operand, key) => {
            let (operand, key) = (evaluate(operand, scope, budget)?, evaluate(key, scope, budget)?);
            let inner = match optional(&operand) {
                Some(inner) => inner.value().cloned(),
                None => Some(operand),
            };
            Ok(wrap(inner.and_then(|value| index(&value, &key).ok())))
        }
        Node::List(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (item, is_optional) in items {
                let item = evaluate(item, scope, budget)?;
                match optional(&item).filter(|_| *is_optional) {
                    Some(inner) => values.extend(inner.value().cloned()),
                    None => values.push(item),
                }
            }
            Ok(value::list(values))
        }
        Node::Map(entries) => {
            let mut map = std::collections::HashMap::with_capacity(entries.len());
            for (key, entry) in entries {
                let key = map_key(&evaluate(key, scope, budget)?).ok_or_else(|| failed("unsupported key type"))?;
                map.insert(key, evaluate(entry, scope, budget)?);
            }
            Ok(Value::Map(Map { map: Arc::new(map) }))
        }
        Node::Struct(name, fields) => {
            let mut entries = Vec::with_capacity(fields.len() + 1);
            for (field, node) in fields {
                entries.push((field.clone(), evaluate(node, scope, budget)?));
            }
            if name == "JSONPatch" {
                entries.push(("@struct".to_owned(), value::string(name)));
            }
            Ok(value::map(entries.into_iter()))
        }
        Node::Bind(parts) => {
            let (name, init, body) = &**parts;
            let bound = evaluate(init, scope, budget)?;
            evaluate(body, &scope.with(name, &bound), budget)
        }
        Node::Fold(fold) => evaluate_fold(fold, scope, budget),
        Node::Call(call) => evaluate_call(call, scope, budget),
    }
}

/// `&&` and `||`: what one side decides needs no other, even if that one fails.
fn both(left: &Node, right: &Node, scope: &Scope<'_>, budget: &mut Budget, deciding: bool) -> Outcome {
    let first = evaluate(left, scope, budget).and_then(truth);
    match first {
        Ok(value) if value == deciding => return Ok(Value::Bool(deciding)),
        Err(error @ (Error::Budget | Error::CallCost)) => return Err(error),
        _ => {}
    }
    match (first, evaluate(right, scope, budget).and_then(truth)) {
        (_, Ok(value)) if value == deciding => Ok(Value::Bool(deciding)),
        (_, Err(error @ (Error::Budget | Error::CallCost))) | (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(_), Ok(value)) => Ok(Value::Bool(value)),
    }
}

fn evaluate_fold(fold: &Fold, scope: &Scope<'_>, budget: &mut Budget) -> Outcome {
    let range = evaluate(&fold.range, scope, budget)?;
    let mut accumulator = evaluate(&fold.init, scope, budget)?;
    let items: Vec<(Value, Option<Value>)> = match &range {
        Value::List(items) if fold.second.is_some() => {
            let index = |index: usize| Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
            items.iter().enumerate().map(|(at, item)| (index(at), Some(item.clone()))).collect()
        }
        Value::List(items) => items.iter().map(|item| (item.clone(), None)).collect(),
        Value::Map(map) => map.map.iter().map(|(key, value)| (Value::from(key), Some(value.clone()))).collect(),
        _ => return Err(no_overload()),
    };
    let mut pending = None;
    for (item, second) in items {
        budget.spend(1)?;
        let with_item = scope.with(&fold.item, &item);
        let empty = Value::Null;
        let with_second = match &fold.second {
            Some(name) => with_item.with(name, second.as_ref().unwrap_or(&empty)),
            None => with_item,
        };
        let next = {
            let inner = with_second.with(&fold.accumulator, &accumulator);
            if !truth(evaluate(&fold.condition, &inner, budget)?)? {
                break;
            }
            step(fold, &inner, budget)
        };
        accumulator = match next {
            Step::Value(value) => value,
            Step::Failed(error @ (Error::Budget | Error::CallCost)) => return Err(error),
            // An error in one step may be made up for by another: `all` and `exists` go on.
            Step::Failed(error) if matches!(fold.step, Node::And(..) | Node::Or(..)) => {
                pending.get_or_insert(error);
                continue;
            }
            Step::Failed(error) => return Err(error),
            Step::Push(item) => push(accumulator, item),
        };
    }
    let deciding = Value::Bool(matches!(fold.step, Node::Or(..)));
    match pending {
        Some(error) if !equal(&accumulator, &deciding) => Err(error),
        _ => evaluate(&fold.result, &scope.with(&fold.accumulator, &accumulator), budget),
    }
}

enum Step {
    Value(Value),
    /// One more item for a list that grows.
    Push(Option<Value>),
    Failed(Error),
}

/// One step. Lists that grow item by item, as `map` and `filter` make them, grow in place.
fn step(fold: &Fold, scope: &Scope<'_>, budget: &mut Budget) -> Step {
    let outcome = match &fold.step {
        Node::Operate(Operator::Add, left, right) => match (&**left, &**right) {
            (Node::Ident(name), Node::List(items)) if *name == fold.accumulator && items.len() == 1 => {
                return match evaluate(&items[0].0, scope, budget) {
                    Ok(item) => Step::Push(Some(item)),
                    Err(error) => Step::Failed(error),
                };
            }
            _ => evaluate(&fold.step, scope, budget),
        },
        Node::Choose(parts) => match &**parts {
            [condition, Node::Operate(Operator::Add, left, right), Node::Ident(other)]
                if *other == fold.accumulator && matches!(&**left, Node::Ident(name) if *name == fold.accumulator) =>
            {
                let chosen = evaluate(condition, scope, budget).and_then(truth);
                match (chosen, &**right) {
                    (Ok(false), _) => return Step::Push(None),
                    (Ok(true), Node::List(items)) if items.len() == 1 => {
                        return match evaluate(&items[0].0, scope, budget) {
                            Ok(item) => Step::Push(Some(item)),
                            Err(error) => Step::Failed(error),
                        };
                    }
                    (Err(error), _) => return Step::Failed(error),
                    _ => evaluate(&fold.step, scope, budget),
                }
            }
            _ => evaluate(&fold.step, scope, budget),
        },
        _ => evaluate(&fold.step, scope, budget),
    };
    match outcome {
        Ok(value) => Step::Value(value),
        Err(error) => Step::Failed(error),
    }
}

fn push(accumulator: Value, item: Option<Value>) -> Value {
    match (accumulator, item) {
        (Value::List(mut items), Some(item)) => {
            Arc::make_mut(&mut items).push(item);
            Value::List(items)
        }
        (accumulator, _) => accumulator,
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it takes what an evaluation gives")]
fn truth(value: Value) -> Result<bool, Error> {
    match value {
        Value::Bool(value) => Ok(value),
        _ => Err(no_overload()),
    }
}

fn key_of(text: &str) -> Key {
    Key::String(Arc::new(text.to_owned()))
}

fn map_key(value: &Value) -> Option<Key> {
    match value {
        Value::Int(value) => Some(Key::Int(*value)),
        Value::UInt(value) => Some(Key::Uint(*value)),
        Value::Bool(value) => Some(Key::Bool(*value)),
        Value::String(text) => Some(Key::String(Arc::clone(text))),
        _ => None,
    }
}

fn member(value: &Value, field: &str) -> Outcome {
    match value {
        Value::Map(map) => map.get(&key_of(field)).cloned().ok_or_else(|| failed(format!("no such key: {field}"))),
        _ => Err(no_overload()),
    }
}

fn index(value: &Value, key: &Value) -> Outcome {
    match (value, key) {
        (Value::List(items), Value::Int(at)) => usize::try_from(*at)
            .ok()
            .and_then(|at| items.get(at))
            .cloned()
            .ok_or_else(|| failed(format!("index out of bounds: {at}"))),
        (Value::Map(map), key) => {
            let key = map_key(key).ok_or_else(no_overload)?;
            map.get(&key).cloned().ok_or_else(|| failed(format!("no such key: {}", value::key_text(&key))))
        }
        (operand, key) => match optional(operand) {
            Some(inner) => Ok(wrap(inner.value().and_then(|value| index(value, key).ok()))),
            None => Err(no_overload()),
        },
    }
}

fn optional(value: &Value) -> Option<&OptionalValue> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<OptionalValue>(),
        _ => None,
    }
}

/// An optional value.
pub fn wrap(value: Option<Value>) -> Value {
    Value::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

fn operate(operator: Operator, left: Value, right: Value, budget: &mut Budget) -> Outcome {
    budget.spend(value::size(&left).min(value::size(&right)))?;
    let order = |wanted: &[Ordering]| {
        compare(&left, &right).map(|found| Value::Bool(found.is_some_and(|found| wanted.contains(&found))))
    };
    match operator {
        Operator::Equal => Ok(Value::Bool(equal(&left, &right))),
        Operator::NotEqual => Ok(Value::Bool(!equal(&left, &right))),
        Operator::Less => order(&[Ordering::Less]),
        Operator::LessEqual => order(&[Ordering::Less, Ordering::Equal]),
        Operator::Greater => order(&[Ordering::Greater]),
        Operator::GreaterEqual => order(&[Ordering::Greater, Ordering::Equal]),
        Operator::Index => index(&left, &right),
        Operator::In => match &right {
            Value::List(items) => {
                budget.spend(items.len() as u64)?;
                Ok(Value::Bool(items.iter().any(|item| equal(item, &left))))
            }
            Value::Map(map) => Ok(Value::Bool(map_key(&left).is_some_and(|key| map.get(&key).is_some()))),
            _ => Err(no_overload()),
        },
        _ => arithmetic(operator, left, right, budget),
    }
}

fn arithmetic(operator: Operator, left: Value, right: Value, budget: &mut Budget) -> Outcome {
    budget.spend(value::size(&left) + value::size(&right))?;
    if let (Value::Int(_) | Value::UInt(_), Value::Int(0) | Value::UInt(0)) = (&left, &right) {
        match operator {
            Operator::Divide => return Err(failed("division by zero")),
            Operator::Modulo => return Err(failed("modulus by zero")),
            _ => {}
        }
    }
    let unsigned = matches!(left, Value::UInt(_));
    let done = match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        _ => left % right,
    };
    done.map_err(|error| match error {
        ExecutionError::Overflow(..) if unsigned => failed("unsigned integer overflow"),
        ExecutionError::Overflow(..) => failed("integer overflow"),
        ExecutionError::UnsupportedBinaryOperator(..) => no_overload(),
        other => failed(words(&other)),
    })
}

/// Numbers of different types are equal if they mean the same number.
fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len() && left.iter().zip(right.iter()).all(|(left, right)| equal(left, right))
        }
        (Value::Map(left), Value::Map(right)) => {
            left.map.len() == right.map.len()
                && left.map.iter().all(|(key, value)| right.get(key).is_some_and(|other| equal(value, other)))
        }
        (Value::Int(_) | Value::UInt(_) | Value::Float(_), Value::Int(_) | Value::UInt(_) | Value::Float(_)) => {
            compare(left, right).is_ok_and(|order| order == Some(Ordering::Equal))
        }
        (left, right) => left == right,
    }
}

/// The order of two values; none for numbers that have none.
///
/// # Errors
/// For values that cannot be compared.
#[allow(clippy::cast_precision_loss, reason = "as in CEL, whose doubles are compared with integers")]
fn compare(left: &Value, right: &Value) -> Result<Option<Ordering>, Error> {
    let number = |value: &Value| match value {
        Value::Int(value) => Ok(*value as f64),
        Value::UInt(value) => Ok(*value as f64),
        Value::Float(value) => Ok(*value),
        _ => Err(no_overload()),
    };
    Ok(match (left, right) {
        (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
        (Value::UInt(left), Value::UInt(right)) => Some(left.cmp(right)),
        (Value::Int(left), Value::UInt(right)) => {
            Some(u64::try_from(*left).map_or(Ordering::Less, |left| left.cmp(right)))
        }
        (Value::UInt(left), Value::Int(right)) => {
            Some(u64::try_from(*right).map_or(Ordering::Greater, |right| left.cmp(&right)))
        }
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bytes(left), Value::Bytes(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Duration(left), Value::Duration(right)) => Some(left.cmp(right)),
        (Value::Timestamp(left), Value::Timestamp(right)) => Some(left.cmp(right)),
        _ => number(left)?.partial_cmp(&number(right)?),
    })
}

fn evaluate_call(call: &Call, scope: &Scope<'_>, budget: &mut Budget) -> Outcome {
    let mut values = Vec::with_capacity(call.args.len() + 1);
    if let Some(target) = &call.target {
        values.push(evaluate(target, scope, budget)?);
    }
    for arg in &call.args {
        values.push(evaluate(arg, scope, budget)?);
    }
    let cost: u64 = values.iter().map(value::size).sum();
    budget.spend(1 + cost)?;
    if let Some(answer) = own(call, &values, scope) {
        return answer;
    }
    // A regular expression costs its length for each character.
    if matches!(call.name.as_str(), "matches" | "find" | "findAll" | "replace" | "split") {
        budget.spend(values.iter().map(|value| value::size(value) + 1).product())?;
    }
    library(&call.template, values)
}

/// Functions that the library lacks.
fn own(call: &Call, values: &[Value], scope: &Scope<'_>) -> Option<Outcome> {
    match (call.name.as_str(), values) {
        ("dyn", [value]) => Some(Ok(value.clone())),
        ("type", [value]) => Some(Ok(value::type_value(value::type_name(value)))),
        ("bool", [Value::Bool(value)]) => Some(Ok(Value::Bool(*value))),
        ("bool", [Value::String(text)]) => Some(match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(failed("type conversion error from 'string' to 'bool'")),
        }),
        ("size", [Value::Map(map)]) => Some(Ok(Value::Int(i64::try_from(map.map.len()).unwrap_or(i64::MAX)))),
        ("size", [Value::List(items)]) => Some(Ok(Value::Int(i64::try_from(items.len()).unwrap_or(i64::MAX)))),
        ("size", [Value::String(text)]) => {
            Some(Ok(Value::Int(i64::try_from(text.chars().count()).unwrap_or(i64::MAX))))
        }
        ("quantity" | "url" | "ip" | "cidr" | "semver", [Value::Null]) => Some(Err(no_overload())),
        (name, [Value::Map(question), rest @ ..]) if question.get(&key_of("@access")).is_some() => {
            Some(access(name, question, rest, scope))
        }
        _ => None,
    }
}

/// `authorizer.group('').resource('pods').check('get').allowed()`: the question grows from call to call.
fn access(name: &str, question: &Map, args: &[Value], scope: &Scope<'_>) -> Outcome {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.to_string()),
        _ => Err(no_overload()),
    };
    let grown = |entries: Vec<(&str, Value)>| {
        let mut map = (*question.map).clone();
        map.extend(entries.into_iter().map(|(key, value)| (key_of(key), value)));
        Value::Map(Map { map: Arc::new(map) })
    };
    match (name, args) {
        ("path" | "group" | "resource" | "subresource" | "namespace" | "name", [value]) => {
            Ok(grown(vec![(name, value::string(&text(value)?))]))
        }
        ("fieldSelector" | "labelSelector", [_]) => Ok(Value::Map(question.clone())),
        ("serviceAccount", [namespace, account]) => {
            let user = format!("system:serviceaccount:{}:{}", text(namespace)?, text(account)?);
            Ok(grown(vec![("user", value::string(&user))]))
        }
        ("check", [verb]) => {
            let asked = grown(vec![("verb", value::string(&text(verb)?))]);
            let allowed = scope.access.is_some_and(|access| access.allowed(&value::to_json(&asked)));
            Ok(grown(vec![("@allowed", Value::Bool(allowed))]))
        }
        ("allowed", []) => question.get(&key_of("@allowed")).cloned().ok_or_else(no_overload),
        ("errored", []) => Ok(Value::Bool(false)),
        ("reason" | "error", []) => Ok(value::string("")),
        _ => Err(no_overload()),
    }
}

thread_local! {
    /// The library's functions.
    static LIBRARY: Context<'static> = Context::default().with_all();
}

/// Calls a function of the library.
fn library(template: &IdedExpr, values: Vec<Value>) -> Outcome {
    LIBRARY.with(|library| {
        let mut context = library.new_inner_scope();
        for (index, value) in values.into_iter().enumerate() {
            context.add_variable_from_value(format!("@{index}"), value);
        }
        context.resolve(template).map_err(|error| failed(words(&error)))
    })
}

/// A conversion by the function of this name.
pub(super) fn convert(function: &str, value: Value) -> Outcome {
    let arg = IdedExpr { id: 0, expr: Expr::Ident("@0".to_owned()) };
    let call = CallExpr { func_name: function.to_owned(), target: None, args: vec![arg] };
    library(&IdedExpr { id: 0, expr: Expr::Call(call) }, vec![value])
}

/// The library's errors in cel-go's words.
fn words(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        _ => "no such overload".to_owned(),
    }
}
