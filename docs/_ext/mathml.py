"""
Formulas as MathML, which browsers draw themselves: the pages need no script from elsewhere, and can be read offline.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
#: Browsers choose the size of brackets themselves
SIZES = re.compile(r"\\[bB]igg?[lr]?(?![a-zA-Z])")


def as_mathml(node: nodes.Element, as_block: bool) -> str:
    """
    :param node: A formula
    :param as_block: Whether it has a line of its own
    :return: It in MathML; what cannot be translated is a warning
    """
    text = SIZES.sub("", node.astext())
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:
        logger.warning("%s in the formula %s", error, node.astext(), location=node)
        return ""


def visit_inline(writer: Any, node: nodes.math) -> None:
    """
    :param writer: Sphinx's HTML writer
    :param node: A formula within a sentence
    """
    writer.body.append(as_mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_display(writer: Any, node: nodes.math_block) -> None:
    """
    :param writer: Sphinx's HTML writer
    :param node: A formula with a line of its own
    """
    writer.body.append(f'<div class="math">{as_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """
    :param app: The builder
    :return: What Sphinx wants to know of an extension
    """
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
