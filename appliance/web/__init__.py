"""The doors for browsers, programs and git: one Litestar application.

What this keeps true: a handler decodes, calls one verb and renders the record: it knows no SQL and no status code. Who asks
is settled before any handler runs (`origin`, `auth`), what they may do is settled by the verb.

    app      the application and its outer layers      origin   which requests are let in at all
    auth     who asks, and each route's permission     errors   the only map from error to status
    render   records as Gradient's JSON                live     streams of what changes
    git      smart HTTP                                api/     one module for each noun

Why: Litestar 2.25 leaves its middleware out for paths without a route and skips websockets and OPTIONS in places, so
whatever protects us stands around the application and not in it.
"""
