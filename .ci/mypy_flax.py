"""Plugin of mypy: `Module.apply` takes and returns what the module's own method does.

Flax declares one union for all its forms (the outputs alone, or a pair with the mutable collections) and types for the
keywords that it keeps to itself: no caller could index the outputs, or pass keywords from a dictionary.
"""

from collections.abc import Callable

from mypy.nodes import ARG_STAR, ARG_STAR2
from mypy.plugin import MethodSigContext, Plugin
from mypy.types import AnyType, CallableType, FunctionLike, Instance, TypeOfAny


def of_any(context: MethodSigContext) -> FunctionLike:
    """Replace the signature by (*args: Any, **kwargs: Any) -> Any, of modules alone."""
    signature, module, anything = context.default_signature, context.type, AnyType(TypeOfAny.explicit)
    if not isinstance(module, Instance) or not module.type.has_base("flax.linen.module.Module"):
        return signature
    return CallableType([anything] * 2, [ARG_STAR, ARG_STAR2], [None, None], anything, signature.fallback)


class Flax(Plugin):
    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        return of_any if fullname.endswith(".apply") else None


def plugin(version: str) -> type[Plugin]:
    return Flax
