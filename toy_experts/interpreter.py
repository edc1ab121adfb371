"""Judges generated Python without running it: an interpreter for a small language of expressions.

A program is one `def` with plain arguments, an optional docstring and one `return`. An expression
may use integers, True and False, the arguments, + - * // % ** and unary -, comparisons, and / or /
not, if-else, lists, indexing and slicing by integers, comprehensions over lists, and the functions
in FUNCTIONS. Nothing else exists here: no attributes, strings, imports, calls of other names,
lambdas, or assignments. Steps, numbers and lists are all bounded, so hostile text is soon "wrong".

>>> run("def f(xs):\\n    return sum(x * 2 for x in xs if x > 1)", ([1, 2, 3],))
10
"""

import ast
import operator
import warnings
from itertools import accumulate

MAX_TEXT = 600  # characters of source; also bounds how deep ast.parse can recurse
MAX_DEPTH = 30  # how deep brackets and expressions may be nested
MAX_STEPS = 2_000  # evaluated nodes in one call
MAX_INT = 10**12  # magnitude of any number that appears
MAX_LIST = 200  # length of any list that appears


class Wrong(Exception):
    """The program is not in the language, breaks a bound, or fails on its arguments."""


def power(a, b):
    if not 0 <= b <= 8:  # a negative exponent would make a float, a large one a giant integer
        raise Wrong("exponent")
    return a**b


BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: power,
}
COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
FUNCTIONS = {f.__name__: f for f in (sum, max, min, len, sorted, abs, set, list, any, all)}
KEYWORDS = {("max", "default"), ("min", "default"), ("sorted", "reverse")}


def bounded(value):
    """The value itself if it is a bool, a small integer, or a short list or set of these."""
    if isinstance(value, (list, set)):
        if len(value) > MAX_LIST:
            raise Wrong("list too long")
        for x in value:
            if isinstance(x, (list, set)):
                raise Wrong("nested list")
            bounded(x)
    elif type(value) not in (int, bool) or abs(value) > MAX_INT:
        raise Wrong("not a small integer")
    return value


def evaluate(node, names, steps, depth=0):
    """The value of one expression node.

    names: variable -> value. steps: [steps left], one list for the whole call.
    """
    steps[0] -= 1
    if steps[0] < 0 or depth > MAX_DEPTH:
        raise Wrong("too many steps" if steps[0] < 0 else "too deep")

    def ev(child):
        return evaluate(child, names, steps, depth + 1)

    match node:
        case ast.Constant():
            return bounded(node.value)
        case ast.Name():
            if node.id not in names:
                raise Wrong(f"unknown name {node.id}")
            return names[node.id]
        case ast.UnaryOp(op=ast.USub()):
            return bounded(-ev(node.operand))
        case ast.UnaryOp(op=ast.Not()):
            return not ev(node.operand)
        case ast.BinOp() if type(node.op) in BINARY:
            a, b = ev(node.left), ev(node.right)
            if not (isinstance(a, int) and isinstance(b, int)):  # lists stay as long as the input's
                raise Wrong("arithmetic on a list")
            return bounded(BINARY[type(node.op)](a, b))
        case ast.BoolOp():
            for child in node.values:
                value = ev(child)
                if bool(value) == isinstance(node.op, ast.Or):  # short circuit, as Python does
                    break
            return value
        case ast.Compare():
            left = ev(node.left)
            for op, right in zip(node.ops, node.comparators):
                right = ev(right)
                if type(op) not in COMPARE:
                    raise Wrong("comparison")
                value = COMPARE[type(op)](left, right)
                if not value:
                    break
                left = right
            return value
        case ast.IfExp():
            return ev(node.body) if ev(node.test) else ev(node.orelse)
        case ast.List():
            return bounded([ev(child) for child in node.elts])
        case ast.ListComp():
            return comprehension(node, names, steps, depth)
        case ast.Subscript():
            value = ev(node.value)
            if not isinstance(value, list):
                raise Wrong("indexing")
            if isinstance(node.slice, ast.Slice):
                parts = (node.slice.lower, node.slice.upper, node.slice.step)
                return value[slice(*(None if part is None else ev(part) for part in parts))]
            return value[ev(node.slice)]
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS and name not in names:
            if name in ("len", "abs") and any(
                isinstance(arg, ast.GeneratorExp) for arg in node.args
            ):
                raise Wrong("a generator has no len or abs")
            args = [
                comprehension(arg, names, steps, depth)
                if isinstance(arg, ast.GeneratorExp)
                else ev(arg)
                for arg in node.args
            ]
            if any((name, kw.arg) not in KEYWORDS for kw in node.keywords):
                raise Wrong("keyword")
            steps[0] -= sum(len(arg) for arg in args if isinstance(arg, (list, set)))
            return bounded(FUNCTIONS[name](*args, **{kw.arg: ev(kw.value) for kw in node.keywords}))
    raise Wrong(type(node).__name__)


def comprehension(node, names, steps, depth):
    if len(node.generators) != 1:  # one `for`: nested ones could explode
        raise Wrong("more than one for")
    loop = node.generators[0]
    source = evaluate(loop.iter, names, steps, depth + 1)
    plain = isinstance(source, (list, set)) and isinstance(loop.target, ast.Name)
    if not plain or loop.is_async:
        raise Wrong("loop")
    values = []
    for x in source:
        inner = {**names, loop.target.id: x}
        if all(evaluate(test, inner, steps, depth + 1) for test in loop.ifs):
            values.append(evaluate(node.elt, inner, steps, depth + 1))
    return bounded(values)


def parse(source):
    """A program in the language: its ast.FunctionDef, and the expression that it returns.

    Raises Wrong.
    """
    if len(source) > MAX_TEXT:
        raise Wrong("too long")
    if max(accumulate((c in "([{") - (c in ")]}") for c in source), default=0) > MAX_DEPTH:
        raise Wrong("too deep")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `1 is 1` and bad escapes warn; the text is not ours
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise Wrong("does not parse") from e
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise Wrong("not one function")
    f, a = body[0], body[0].args
    more = a.posonlyargs, a.vararg, a.kwonlyargs, a.kwarg, a.defaults
    if any(more) or any(arg.annotation for arg in a.args):
        raise Wrong("signature")
    if f.decorator_list or f.returns or getattr(f, "type_params", None):
        raise Wrong("signature")
    statements = f.body
    if isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Constant):
        statements = statements[1:]  # the docstring
    match statements:
        case [ast.Return(value=ast.expr() as expression)]:
            return f, expression
    raise Wrong("not one return")


def call(program, args):
    """The value of a parsed program on args, a tuple of integers and lists of integers.

    Raises Wrong, and nothing else.
    """
    f, expression = program
    try:
        if len(f.args.args) != len(args):
            raise Wrong("other number of arguments than asked")
        names = {a.arg: list(x) if isinstance(x, list) else x for a, x in zip(f.args.args, args)}
        return evaluate(expression, names, [MAX_STEPS])
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as e:
        raise Wrong(type(e).__name__) from e


def run(source, args):
    """The value of a program on args. Raises Wrong, and nothing else."""
    return call(parse(source), args)


def passes(source, cases, name):
    """Whether the program is called `name` and gives each expected value. Never raises.

    cases: [(args, expected), ...].
    """
    try:
        program = parse(source)
        got = [(call(program, args), expected) for args, expected in cases]
        return program[0].name == name and all(type(a) is type(b) and a == b for a, b in got)
    except Wrong:
        return False
