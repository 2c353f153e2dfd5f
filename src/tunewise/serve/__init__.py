"""Several adaptations over one loaded base, answering requests.

swap.py        which adaptation the base wears now
decoding.py    rows that are decoded together, joining and leaving between steps
text.py        tokens as text, as far as it is certain, up to a stop
scheduler.py   the thread that owns the model: a bounded queue of requests in, pieces of answers out
wire.py        OpenAI's requests and responses
app.py         the HTTP server
"""
