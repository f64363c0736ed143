"""Refusals of the service. Each carries its HTTP status; one handler in app.py puts them on the wire.

ServiceFault
├── NoToken            401   a token is needed, and none was sent
├── InvalidToken       401   a token that is not known here, or was revoked
├── WrongRole          403   a token that may do other things than this
├── WrongHost          403   no token is needed yet, and the request is for another name than this machine's own
├── UnknownDevice      404
├── UnknownProtocol    404
├── UnknownOperator    404   a text key that names no acceptable operator
├── UnknownModel       404
├── UnknownTable       404
├── UnknownMeasurement 404
├── NotInTable         404   an operator that a table version does not hold
├── CannotCalibrate    409   networks that are not measured, or that determine no calibration
├── InvalidModel       422   bytes that are not the TFLite file of their address
├── InvalidWeights     422   weights that are not those of their network
├── BodyTooLarge       413
├── QueueFull          429   one client waits for more than is its share
├── ConversionFailed   400   a subject that TensorFlow cannot convert; in the queue, it fails the jobs that wait for it
├── ConverterBusy      503   or not to be had: it starts, it ends, or many wait for it
├── ConvertsElsewhere  421   a service that was told to leave converting to others
├── StaleLease         409   the token is not, or no longer, the owner of these jobs
├── WrongMeasurement   409   a result that does not belong to the job it is reported for
└── SchemaMismatch     503   the database has another schema than this program
"""

from typing import ClassVar


class ServiceFault(Exception):
    """The text is a sentence for people that says what to do next."""

    status: ClassVar[int]
    headers: ClassVar[dict[str, str]] = {}


# Who is refused before the body is read must not go on sending it: the service would have to receive it to the end.
HANG_UP = {"Connection": "close"}


class NoToken(ServiceFault):
    status = 401
    headers: ClassVar = {"WWW-Authenticate": "Bearer"} | HANG_UP


class InvalidToken(ServiceFault):
    status = 401
    headers: ClassVar = {"WWW-Authenticate": 'Bearer error="invalid_token"'} | HANG_UP


class WrongRole(ServiceFault):
    status = 403
    headers: ClassVar = HANG_UP


class WrongHost(ServiceFault):
    status = 403
    headers: ClassVar = HANG_UP


class UnknownDevice(ServiceFault):
    status = 404


class UnknownProtocol(ServiceFault):
    status = 404


class UnknownOperator(ServiceFault):
    status = 404


class UnknownModel(ServiceFault):
    status = 404


class UnknownTable(ServiceFault):
    status = 404


class UnknownMeasurement(ServiceFault):
    status = 404


class NotInTable(ServiceFault):
    status = 404


class CannotCalibrate(ServiceFault):
    status = 409


class InvalidModel(ServiceFault):
    status = 422


class InvalidWeights(ServiceFault):
    status = 422


class BodyTooLarge(ServiceFault):
    status = 413
    headers: ClassVar = HANG_UP


class QueueFull(ServiceFault):
    status = 429
    headers: ClassVar = {"Retry-After": "60"}  # devices measure some hundred operators in this time


class ConversionFailed(ServiceFault):
    status = 400


class ConverterBusy(ServiceFault):
    status = 503


class ConvertsElsewhere(ServiceFault):
    status = 421


class StaleLease(ServiceFault):
    status = 409


class WrongMeasurement(ServiceFault):
    status = 409


class SchemaMismatch(ServiceFault):
    status = 503
