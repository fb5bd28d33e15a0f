"""Data that cannot fail: messages, events, requests, results, and the protocols the core is written against."""
