//! From the text of an expression to a program: parsed, checked for names, brought into the form that is evaluated.

use kube_cel::cel::Value;
use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use kube_cel::cel::parser::Parser;

use super::value;

/// The longest expression that is read, in bytes.
const LONGEST: usize = 10 << 10;
/// How deep parentheses, lists and calls may be nested.
const DEEPEST: usize = 64;
/// Names of types, as `type()` gives them.
pub(super) const TYPES: &[&str] =
    &["bool", "bytes", "double", "duration", "int", "list", "map", "null_type", "string", "timestamp", "type", "uint"];

/// Functions and methods that there are; those with a dot are called by their whole name.
const FUNCTIONS: &[&str] = &[
    "add",
    "allowed",
    "asApproximateFloat",
    "asInteger",
    "base64.decode",
    "base64.encode",
    "bool",
    "bytes",
    "charAt",
    "check",
    "cidr",
    "compareTo",
    "contains",
    "containsCIDR",
    "containsIP",
    "distinct",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "error",
    "errored",
    "family",
    "fieldSelector",
    "find",
    "findAll",
    "first",
    "flatten",
    "format",
    "format.byte",
    "format.date",
    "format.datetime",
    "format.dns1035Label",
    "format.dns1035LabelPrefix",
    "format.dns1123Label",
    "format.dns1123LabelPrefix",
    "format.dns1123Subdomain",
    "format.dns1123SubdomainPrefix",
    "format.labelValue",
    "format.named",
    "format.qualifiedName",
    "format.uri",
    "format.uuid",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getEscapedPath",
    "getFullYear",
    "getHost",
    "getHostname",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getPort",
    "getQuery",
    "getScheme",
    "getSeconds",
    "group",
    "hasValue",
    "indexOf",
    "int",
    "ip",
    "ip.isCanonical",
    "isCIDR",
    "isCIDRv4",
    "isCIDRv6",
    "isGlobalUnicast",
    "isGreaterThan",
    "isIP",
    "isIPv4",
    "isIPv6",
    "isInteger",
    "isLessThan",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isLoopback",
    "isQuantity",
    "isSemver",
    "isSorted",
    "isURL",
    "isUnspecified",
    "join",
    "jsonpatch.escapeKey",
    "labelSelector",
    "last",
    "lastIndexOf",
    "lists.range",
    "lowerAscii",
    "major",
    "masked",
    "matches",
    "math.abs",
    "math.bitAnd",
    "math.bitNot",
    "math.bitOr",
    "math.bitShiftLeft",
    "math.bitShiftRight",
    "math.bitXor",
    "math.ceil",
    "math.floor",
    "math.greatest",
    "math.isFinite",
    "math.isInf",
    "math.isNaN",
    "math.least",
    "math.round",
    "math.sign",
    "math.sqrt",
    "math.trunc",
    "max",
    "min",
    "minor",
    "name",
    "namespace",
    "optional.none",
    "optional.of",
    "optional.ofNonZeroValue",
    "or",
    "orValue",
    "patch",
    "path",
    "prefixLength",
    "quantity",
    "reason",
    "replace",
    "resource",
    "reverse",
    "semver",
    "serviceAccount",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "sign",
    "size",
    "slice",
    "sort",
    "split",
    "startsWith",
    "string",
    "strings.quote",
    "sub",
    "subresource",
    "substring",
    "sum",
    "timestamp",
    "trim",
    "type",
    "uint",
    "upperAscii",
    "url",
    "validate",
    "value",
];

/// An expression that can be evaluated.
#[derive(Debug)]
pub struct Program {
    pub(super) root: Node,
    names: Vec<String>,
    /// Objects whose names don't say where they stand: `Object.spec` where `Object.metadata` belongs.
    misplaced: Vec<String>,
}

/// A step of an evaluation.
#[derive(Debug)]
pub(super) enum Node {
    Literal(Value),
    Ident(String),
    Select {
        operand: Box<Node>,
        field: String,
    },
    Has {
        operand: Box<Node>,
        field: String,
    },
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    NotFalse(Box<Node>),
    Choose(Box<[Node; 3]>),
    Negate(Box<Node>),
    Operate(Operator, Box<Node>, Box<Node>),
    OptionalSelect(Box<Node>, Box<Node>),
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node)>),
    Call(Box<Call>),
    Fold(Box<Fold>),
    /// `cel.bind(name, value, body)`
    Bind(Box<(String, Node, Node)>),
    /// `Object.spec{…}` of mutating policies: a name and fields.
    Struct(String, Vec<(String, Node)>),
}

/// An operator of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Index,
}

const OPERATORS: &[(&str, Operator)] = &[
    (operators::ADD, Operator::Add),
    (operators::SUBSTRACT, Operator::Subtract),
    (operators::MULTIPLY, Operator::Multiply),
    (operators::DIVIDE, Operator::Divide),
    (operators::MODULO, Operator::Modulo),
    (operators::EQUALS, Operator::Equal),
    (operators::NOT_EQUALS, Operator::NotEqual),
    (operators::LESS, Operator::Less),
    (operators::LESS_EQUALS, Operator::LessEqual),
    (operators::GREATER, Operator::Greater),
    (operators::GREATER_EQUALS, Operator::GreaterEqual),
    (operators::IN, Operator::In),
    (operators::INDEX, Operator::Index),
];

/// A call of a function or method.
#[derive(Debug)]
pub(super) struct Call {
    pub name: String,
    pub target: Option<Node>,
    pub args: Vec<Node>,
    /// The same call with `@0`, `@1`, … for its target and arguments: this is how the library's functions are reached.
    pub template: IdedExpr,
}

/// What macros over lists and maps come to.
#[derive(Debug)]
pub(super) struct Fold {
    pub range: Node,
    pub item: String,
    pub second: Option<String>,
    pub accumulator: String,
    pub init: Node,
    pub condition: Node,
    pub step: Node,
    pub result: Node,
}

impl Program {
    /// Compiles an expression that may use these variables.
    ///
    /// # Errors
    /// What is wrong with it, as cel-go words it.
    pub fn compile(source: &str, variables: &[&str]) -> Result<Self, String> {
        if source.len() > LONGEST {
            return Err(format!(
                "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {}, limit {LONGEST}",
                source.len()
            ));
        }
        if depth(source) > DEEPEST {
            return Err(format!("ERROR: <input>:-1:0: expression recursion limit exceeded: {DEEPEST}"));
        }
        let parser = Parser::default().enable_optional_syntax(true);
        let parsed = parser.parse(source).map_err(|errors| {
            let text = errors.to_string();
            text.replacen(": ", ": Syntax error: ", 2).replacen("ERROR: Syntax error: ", "ERROR: ", 1)
        })?;
        let mut lowering =
            Lowering { source, known: variables.iter().map(ToString::to_string).collect(), names: Vec::new() };
        let root = lowering.lower(&parsed)?;
        let mut misplaced = Vec::new();
        check_places(&parsed, None, &mut misplaced);
        Ok(Self { root, names: lowering.names, misplaced })
    }

    /// What is wrong with the names of the objects that it makes: each must be the path to where the object stands.
    pub fn misplaced(&self) -> &[String] {
        &self.misplaced
    }

    /// Whether the expression uses a variable.
    pub fn uses(&self, name: &str) -> bool {
        self.names.iter().any(|used| used == name)
    }
}

/// Compares the names of objects with the fields that hold them; lists and maps between have no name.
fn check_places(expr: &IdedExpr, expected: Option<&str>, misplaced: &mut Vec<String>) {
    match &expr.expr {
        Expr::Struct(object) => {
            let name = &object.type_name;
            if let Some(expected) = expected.filter(|expected| expected != name) {
                misplaced.push(format!(
                    "unexpected type name {name:?}, expected {expected:?}, which matches field name path from root Object type"
                ));
            }
            for entry in &object.entries {
                if let EntryExpr::StructField(field) = &entry.expr {
                    let place = format!("{name}.{}", field.field);
                    let place = (name != "JSONPatch").then_some(place.as_str());
                    check_places(&field.value, place, misplaced);
                }
            }
        }
        Expr::List(list) => list.elements.iter().for_each(|item| check_places(item, expected, misplaced)),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    check_places(&entry.value, expected, misplaced);
                }
            }
        }
        _ => {}
    }
}

/// How deep brackets are nested, whatever stands in strings.
fn depth(source: &str) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => now += 1,
            b')' | b']' | b'}' => now = now.saturating_sub(1),
            // Prefix operators nest as well.
            b'!' | b'-' | b'?' => most = most.max(now),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

struct Lowering<'a> {
    source: &'a str,
    known: Vec<String>,
    names: Vec<String>,
}

impl Lowering<'_> {
    fn lower(&mut self, expr: &IdedExpr) -> Result<Node, String> {
        match &expr.expr {
            Expr::Unspecified => Err("ERROR: <input>:1:1: unspecified expression".to_owned()),
            Expr::Literal(literal) => Ok(Node::Literal(literal_value(literal))),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => {
                let operand = Box::new(self.lower(&select.operand)?);
                let field = select.field.clone();
                Ok(if select.test { Node::Has { operand, field } } else { Node::Select { operand, field } })
            }
            Expr::List(list) => {
                let items: Result<Vec<_>, String> = list
                    .elements
                    .iter()
                    .enumerate()
                    .map(|(index, item)| Ok((self.lower(item)?, list.optional_indices.contains(&index))))
                    .collect();
                Ok(Node::List(items?))
            }
            Expr::Map(map) => {
                let mut entries = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        entries.push((self.lower(&entry.key)?, self.lower(&entry.value)?));
                    }
                }
                Ok(Node::Map(entries))
            }
            Expr::Struct(object) => {
                if object.type_name != "JSONPatch" && object.type_name.split('.').next() != Some("Object") {
                    return Err(self.undeclared(&object.type_name));
                }
                let mut fields = Vec::with_capacity(object.entries.len());
                for entry in &object.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        fields.push((field.field.clone(), self.lower(&field.value)?));
                    }
                }
                Ok(Node::Struct(object.type_name.clone(), fields))
            }
            Expr::Comprehension(fold) => {
                let range = self.lower(&fold.iter_range)?;
                let init = self.lower(&fold.accu_init)?;
                let before = self.known.len();
                self.known.extend([fold.iter_var.clone(), fold.accu_var.clone()]);
                self.known.extend(fold.iter_var2.clone());
                let fold = Fold {
                    range,
                    item: fold.iter_var.clone(),
                    second: fold.iter_var2.clone(),
                    accumulator: fold.accu_var.clone(),
                    init,
                    condition: self.lower(&fold.loop_cond)?,
                    step: self.lower(&fold.loop_step)?,
                    result: self.lower(&fold.result)?,
                };
                self.known.truncate(before);
                Ok(Node::Fold(Box::new(fold)))
            }
            Expr::Call(call) => self.call(call),
        }
    }

    fn ident(&mut self, name: &str) -> Result<Node, String> {
        if !self.known.iter().any(|known| known == name) {
            if TYPES.contains(&name) {
                return Ok(Node::Literal(value::type_value(name)));
            }
            return Err(self.undeclared(name));
        }
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
        Ok(Node::Ident(name.to_owned()))
    }

    fn undeclared(&self, name: &str) -> String {
        let at = self.source.find(name).unwrap_or(0);
        let line = self.source[..at].matches('\n').count();
        let column = at - self.source[..at].rfind('\n').map_or(0, |end| end + 1);
        let shown = self.source.lines().nth(line).unwrap_or_default();
        format!(
            "ERROR: <input>:{}:{}: undeclared reference to '{name}' (in container '')\n | {shown}\n | {}^",
            line + 1,
            column + 1,
            ".".repeat(column)
        )
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, String> {
        let name = call.func_name.as_str();
        if let Some(node) = self.operator(name, &call.args)? {
            return Ok(node);
        }
        let mut full = name.to_owned();
        let mut target = None;
        if let Some(of) = &call.target {
            match qualified(of) {
                Some(prefix) if prefix == "cel" && name == "bind" => return self.bind(&call.args),
                Some(prefix) if FUNCTIONS.contains(&format!("{prefix}.{name}").as_str()) => {
                    full = format!("{prefix}.{name}");
                }
                _ => target = Some(self.lower(of)?),
            }
        }
        if !FUNCTIONS.contains(&full.as_str()) {
            return Err(self.undeclared(name));
        }
        let args: Vec<Node> = call.args.iter().map(|arg| self.lower(arg)).collect::<Result<_, _>>()?;
        let place = |index: usize| IdedExpr { id: 0, expr: Expr::Ident(format!("@{index}")) };
        let offset = usize::from(target.is_some());
        let template = IdedExpr {
            id: 0,
            expr: Expr::Call(CallExpr {
                func_name: full.clone(),
                target: target.as_ref().map(|_| Box::new(place(0))),
                args: (0..args.len()).map(|index| place(index + offset)).collect(),
            }),
        };
        Ok(Node::Call(Box::new(Call { name: full, target, args, template })))
    }

    fn operator(&mut self, name: &str, args: &[IdedExpr]) -> Result<Option<Node>, String> {
        let mut nodes =
            |args: &[IdedExpr]| -> Result<Vec<Node>, String> { args.iter().map(|arg| self.lower(arg)).collect() };
        let node = match (name, args.len()) {
            (operators::LOGICAL_NOT, 1) => Node::Not(Box::new(self.lower(&args[0])?)),
            (operators::NOT_STRICTLY_FALSE, 1) => Node::NotFalse(Box::new(self.lower(&args[0])?)),
            (operators::NEGATE, 1) => Node::Negate(Box::new(self.lower(&args[0])?)),
            (operators::CONDITIONAL, 3) => {
                let nodes: [Node; 3] =
                    nodes(args)?.try_into().map_err(|_| "ERROR: a condition has three parts".to_owned())?;
                Node::Choose(Box::new(nodes))
            }
            (operators::LOGICAL_AND, 2) => Node::And(Box::new(self.lower(&args[0])?), Box::new(self.lower(&args[1])?)),
            (operators::LOGICAL_OR, 2) => Node::Or(Box::new(self.lower(&args[0])?), Box::new(self.lower(&args[1])?)),
            (operators::OPT_SELECT | operators::OPT_INDEX, 2) => {
                Node::OptionalSelect(Box::new(self.lower(&args[0])?), Box::new(self.lower(&args[1])?))
            }
            (_, 2) => match OPERATORS.iter().find(|(known, _)| *known == name) {
                Some((_, operator)) => {
                    Node::Operate(*operator, Box::new(self.lower(&args[0])?), Box::new(self.lower(&args[1])?))
                }
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(node))
    }

    fn bind(&mut self, args: &[IdedExpr]) -> Result<Node, String> {
        let [IdedExpr { expr: Expr::Ident(name), .. }, init, body] = args else {
            return Err("ERROR: <input>:1:1: cel.bind() variable names must be simple identifiers".to_owned());
        };
        let init = self.lower(init)?;
        self.known.push(name.clone());
        let body = self.lower(body);
        self.known.pop();
        Ok(Node::Bind(Box::new((name.clone(), init, body?))))
    }
}

/// `math`, `jsonpatch`: what stands before the dot of a function with a qualified name.
fn qualified(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        _ => None,
    }
}

fn literal_value(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(value) => Value::Bool((*value).into_inner()),
        LiteralValue::Bytes(value) => Value::Bytes(value.clone().into_inner().into()),
        LiteralValue::Double(value) => Value::Float((*value).into_inner()),
        LiteralValue::Int(value) => Value::Int((*value).into_inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(value) => Value::String(value.clone().into_inner().into()),
        LiteralValue::UInt(value) => Value::UInt((*value).into_inner()),
    }
}
