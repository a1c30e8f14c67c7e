"""The collector: takes sealed ranges of batches from a broker and puts every row into ClickHouse exactly once.

One file a step, in the order in which a delivery meets them:

    decode       payloads -> batches; what cannot be decoded is named for the dead letters
    validate     which rows are accepted, and why the others are not (pure, R17)
    merge        batches -> the columns of one block a day
    doubt        what to do about one block: insert, ask, fence, give up (pure, R13, R14)
    insert       does what ``doubt`` decides, over one connection (R2, R12, R15)
    deadletter   what goes back to the broker as dead, and with which words
    breaker      when to stop taking work because the store is away (pure, R23)
    collector    the engine: worker threads that run the steps, acknowledge and drain
"""
