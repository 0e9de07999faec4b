"""Serving: scheduler, HTTP, Wyoming, bulk. The only package that may need the serve extra."""
