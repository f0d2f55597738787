"""A web page as a browser would take it apart: what it fetches, what it says, whether it is well formed."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Collect what a browser would fetch, and check that every element is closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.requests, self.text, self.tables = [], [], [], 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.tables += tag == "table"
        for name, value in attributes:
            if name in ("src", "href", "data", "xlink:href", "action") and not value.startswith("#"):
                self.requests.append(value)
            self.requests += re.findall(r"url\((?!#)[^)]*\)", value or "")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
