"""How a person opens a part of the page: a tab, or what is folded away under a button."""

from typing import Any

SETTLE_JS = """() => new Promise(done => {
    let timer = setTimeout(done, 200)
    new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(done, 200) })
        .observe(document.body, {subtree: true, childList: true, attributes: true})
    setTimeout(done, 5000)  // a job's progress goes on
})"""


def open_part(page: Any, role: str, name: str) -> None:
    """Press the `tab` or `button` of this name, and wait until the page stands still for 0.2 s.

    Gradio mounts what is inside when it is first opened, and then puts its values in once more: what
    was written in between, faster than a person writes, is lost.
    """
    page.get_by_role(role, name=name).first.click()
    page.evaluate(SETTLE_JS)
