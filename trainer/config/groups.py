"""One entry of `optimizer.groups`: which parameters, by a regular expression on their names, are trained otherwise than the others."""

import re
from typing import Any

from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from trainer.config.section import Decay, Rate, Section


class ParameterGroup(Section):
    """What is another for the parameters whose names a regular expression is found in."""

    match: str
    """A regular expression, searched for in the names of parameters: `lm_head|embed`."""
    lr: Rate | None = None
    """Their peak learning rate; empty: optimizer.lr."""
    weight_decay: Decay | None = None
    """Decoupled weight decay of their matrices; empty: optimizer.weight_decay."""
    freeze: bool = False
    """Whether they stay as they are."""

    @field_validator("match")
    @classmethod
    def _is_an_expression(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"a regular expression on names of parameters ({error})") from None
        return match

    @model_validator(mode="after")
    def _says_one_thing(self) -> "ParameterGroup":
        if self.freeze and (self.lr is not None or self.weight_decay is not None):
            raise ValueError("without lr and weight_decay, since freeze: true trains nothing of it")
        return self

    @model_serializer(mode="wrap")
    def _what_it_says(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is as for all others: a kept config and a report of changes show what somebody wrote."""
        return {key: value for key, value in handler(self).items() if value is not None and value is not False}
