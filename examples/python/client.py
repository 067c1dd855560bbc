"""Submits a job and watches it to its end, with nothing but grpcio and reflection.

usage: client.py STORE JOB_ID REGION MODEL QUESTION=PROMPT...
"""
import sys

from contract import Contract

if __name__ == "__main__":
    store, job_id, region, model, *questions = sys.argv[1:]
    contract = Contract.of_store(store)
    print("services:", ", ".join(contract.services()))
    spec = {
        "questions": [dict(zip(("id", "prompt"), question.split("=", 1))) for question in questions],
        "models": [{"id": model, "regions": [region]}],
    }
    created = contract.call("JobService/SubmitJob", job_id=job_id, spec=spec)
    print(f"submitted: created={created.created} expected={created.job.counts.expected}")
    for picture in contract.call("JobService/WatchJob", job_id=job_id, interval_ms=200):
        counts = picture.job.counts
        print(f"{contract.enum('JobState', picture.job.state)}: {counts.recorded} of {counts.expected}")
    page = contract.call("JobService/ListExecutions", job_id=job_id)
    for row in page.executions:
        print(f"{row.key.question}: {row.output.decode()}")
