"""A Semel agent in Python, through the documented contract (proto/semel/v1/agent.proto).

usage: agent.py STORE REGION MODEL[,MODEL...]      STORE is the file of a running coordinator

It answers each cell with its last message in capitals: put a call of your own into `answer`.
What makes it safe: it says Hello first and a lease is acknowledged and said to be started before it
runs; a result is repeated until its receipt comes; a revoked lease is not reported; on a broken
stream it comes back as the same incarnation and presents what it holds.
"""
import hashlib
import json
import os
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from contract import Contract

SLOTS = 4


def answer(task: dict) -> bytes:
    """What a cell's input is answered with."""
    return task["messages"][-1]["content"].upper().encode()


class Agent:
    def __init__(self, contract: Contract, region: str, models: list[str]):
        self.contract, self.region, self.models = contract, region, models
        self.incarnation = os.urandom(16)
        self.lock = threading.Lock()
        self.held, self.results = {}, {}  # leases that run, and results without a receipt, by token
        self.news, self.number, self.outbox = [], 0, queue.Queue()
        self.pool = ThreadPoolExecutor(SLOTS)
        self.stopped = threading.Event()

    def say(self, body: str, name: str, **fields):
        message = self.contract.message("SessionRequest", **{body: self.contract.message(name, **fields)})
        self.outbox.put(message)

    def hello(self):
        listed = [{"lease_token": t, "started": True} for t in self.held]
        self.say("hello", "Hello", protocol_version=1, agent_id=f"python-{self.region}", incarnation=self.incarnation,
                 region=self.region, models=[{"id": m, "provider": "python"} for m in self.models], slots=SLOTS,
                 held=listed, spooled=[{"lease_token": t, "started": True} for t in self.results])

    def heartbeat(self):
        with self.lock:
            self.number += 1
            tokens, xor = [lease.fencing_token for lease in self.held.values()], 0
            for token in tokens:
                xor ^= token
            news, self.news = self.news, []
            self.say("heartbeat", "Heartbeat", number=self.number, slots=SLOTS, acknowledged=news, started=news,
                     held_count=len(tokens), held_xor=xor)

    def run(self, lease):
        token, started = lease.lease_token, time.monotonic()
        output = answer(json.loads(lease.input))
        report = dict(lease_token=token, input_digest=hashlib.sha256(lease.input).digest(),
                      served={"region": self.region, "region_basis": 3, "executor": "python"},
                      timings={"ran_ms": int(1000 * (time.monotonic() - started))}, success={"output": output})
        with self.lock:
            if self.held.pop(token, None) is None:
                return  # revoked meanwhile
            self.results[token] = report
            self.say("report", "Report", **report)

    def handle(self, message):
        body = message.WhichOneof("body")
        if body == "welcome":
            with self.lock:
                for token in message.welcome.lost:
                    self.held.pop(token, None)
                for report in self.results.values():
                    self.say("report", "Report", **report)
            threading.Thread(target=self.beat, args=(message.welcome.heartbeat_interval_ms / 1000,), daemon=True).start()
        elif body == "lease":
            with self.lock:
                self.held[message.lease.lease_token] = message.lease
                self.news.append(message.lease.fencing_token)
            self.heartbeat()  # acknowledged and started, before it starts
            self.pool.submit(self.run, message.lease)
        elif body in ("receipt", "revoke"):
            with self.lock:
                (self.results if body == "receipt" else self.held).pop(getattr(message, body).lease_token, None)
        elif body == "held_request":
            with self.lock:
                self.say("held", "Held", number=self.number, request=message.held_request.number,
                         leases=[{"lease_token": t, "started": True} for t in self.held])
        elif body == "go_away" and self.contract.enum("GoAwayReason", message.go_away.reason).endswith("SUPERSEDED"):
            self.stopped.set()

    def beat(self, interval: float):
        stream = self.outbox
        while not self.stopped.wait(interval) and stream is self.outbox:
            self.heartbeat()

    def serve(self):
        while not self.stopped.is_set():
            self.outbox = queue.Queue()
            self.hello()
            try:
                for message in self.contract.stub("AgentService/Session")(iter(self.outbox.get, None)):
                    self.handle(message)
            except grpc.RpcError as error:
                print(f"stream ended: {error.details()}", file=sys.stderr)
            self.stopped.wait(1)


if __name__ == "__main__":
    store, region, models = sys.argv[1:]
    Agent(Contract.of_store(store), region, models.split(",")).serve()
