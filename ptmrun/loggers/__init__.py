"""One file a tracking library: `Logger(run, cfg)`, which begins a tracked run or goes on with that of an interrupted run.

    logger.look                                     how to look at what was tracked, for the terminal
    logger.metrics(prefix, values, step, time)      {name: number} of one line of metrics.jsonl; time in seconds since 1970
    logger.figure(name, path)                       a PNG
    logger.close(status, scores)                    done | failed | interrupted; {name: number} of results.json

It imports its library at the top and may raise anything: see tracker.py.
"""
