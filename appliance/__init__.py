"""Appliance: a self-hosted Paperspace Gradient for one GPU server.

The one idea: the SQLite file says what is wanted; Docker and NVML say what is; loops close the gap; doors only
write wishes. A web handler never starts a container: it writes a row. A loop never invents a wish: it carries one out. After a
power cut the loops start, compare and go on, so there is no recovery code: there is only recovery.

The floors, from the cellar up; a module imports only from below, and modules on one line do not import each other
(`lint-imports` holds it, see pyproject.toml):

    6  daemon                                          builds one of everything and starts the loops: `applianced`
    5  web | cli, over tour                            the doors; `appliance` (cli) is a client and nothing else
       client                                          the SDK: the same verbs over HTTP
    4  scheduler | reconcile | janitor | gateway | doctor    the loops, and who looks after the machine
    3  removal, over pushes, over runs, over deployments     the work: a push starts runs, a run may deploy
    2  datasets | models, over catalog, over versions | leases | containers, over projects, over accounts | machine | workflows,
       over events                                     the things
    1  schema, over db | store | repos | runtime | inference | tls    the outside: each wraps one thing
    0  records, over config | ids | states | clock, over errors       the words

Everything that runs is one kind of thing: a workflow job's attempt and a deployment's replica are each a container row
with a wanted state, a lease and labels. One scheduler gives out CPU, memory and cards; one reconciler carries them all.
"""

__version__ = "0.1.0"
