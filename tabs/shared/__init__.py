"""What several pages and endpoints use.

Checks before the queue, hand-offs between tabs, files and runs to choose. May import `tabs.server`
and `core`; no page.
"""
