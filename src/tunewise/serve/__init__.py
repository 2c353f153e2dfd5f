"""Several adaptations over one loaded base, answering requests.

adaptation_pool.py   which adaptation is active on the base now
loading.py           the folders of adaptations, loaded into a pool
prompts.py           a conversation or a text as the token ids that an adaptation reads
decoding.py          rows that are decoded in one batch, joining and leaving between steps
detokenizer.py       tokens as text, as far as no later token can change it, up to a stop text
scheduler.py         the thread that owns the model: a bounded queue of requests in, pieces of answers out
client.py            requests from the same process; prompt_file.py and answer_file.py: files of prompts and answers
openai_schema.py     OpenAI's requests; openai_responses.py: OpenAI's responses
app.py               the HTTP routes; middleware.py: what is checked before them; metrics.py: what Prometheus reads
server.py            the server process: its socket and its signals
vllm.py              the command that starts vLLM instead
"""
