"""The gateway: one place that keeps a whole company's calls from becoming a storm.

callers ── protocol.py ── app.py ── tenants.py, repeats.py      who may, and who repeats what was just refused
                            ├ check.py                          the same question, asked by nginx, Envoy, Traefik
                            └ relay.py ── Engine ── sender.py   one call, from its head to its last byte
supervisor.py ── workers.py ── worker.py                                      processes, signals, reload, drain
settings.py, configuration.py                                   what may be set, and the file it is read from
openapi.py                                                      what it offers, as an OpenAPI page
pages.py                                                        health, metrics, dashboard
"""
