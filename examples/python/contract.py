"""The contract of a running coordinator, read through reflection: no generated code.

Wants: pip install grpcio grpcio-reflection
"""
import json
import pathlib

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Token(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Shows the coordinator's token with every call, reflection's too."""

    def __init__(self, token: str):
        self.metadata = [("authorization", f"Bearer {token}")]

    def intercept(self, call, details, request):
        return call(details._replace(metadata=self.metadata), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_stream = intercept


class Contract:
    """Calls of semel.v1 by name: `contract.call("JobService/GetJob", job_id="j")`."""

    def __init__(self, address: str, token: str):
        channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 80 << 20)])
        self.channel = grpc.intercept_channel(channel, Token(token))
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)

    @classmethod
    def of_store(cls, store: str) -> "Contract":
        """The coordinator that runs on a store says where it listens in a file beside it."""
        endpoint = json.loads(pathlib.Path(f"{store}.endpoint").read_text())
        return cls(endpoint["address"], endpoint["token"])

    def services(self) -> list[str]:
        return sorted(self.database.get_services())

    def message(self, name: str, **fields):
        """A message of the contract, by its name."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(f"semel.v1.{name}"))(**fields)

    def enum(self, name: str, number: int) -> str:
        """The word of an enum's value."""
        return self.pool.FindEnumTypeByName(f"semel.v1.{name}").values_by_number[number].name

    def stub(self, method: str):
        """A call: unary or streaming, as the contract says."""
        service, name = method.split("/")
        descriptor = self.pool.FindServiceByName(f"semel.v1.{service}").FindMethodByName(name)
        kind = ("stream" if descriptor.client_streaming else "unary") + "_" + (
            "stream" if descriptor.server_streaming else "unary")
        answer = message_factory.GetMessageClass(descriptor.output_type)
        return getattr(self.channel, kind)(
            f"/semel.v1.{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    def call(self, method: str, **fields):
        """Calls with these fields."""
        service, name = method.split("/")
        request = self.pool.FindServiceByName(f"semel.v1.{service}").FindMethodByName(name).input_type
        return self.stub(method)(message_factory.GetMessageClass(request)(**fields))
