"""Adapters for web applications that call DeepSeek: admission at the door, deadlines inherited, errors answered.

door.py ── asgi.py, wsgi.py, django.py     who may come in, and what surrounds the calls that a request makes
answers.py ──┘                              our errors as the answers that the application's caller gets
"""
