"""The one error whose message is for the person at the page."""


class UserError(Exception):
    """An error that a person can mend, told in a sentence with the value and what is allowed.

    `field` is the name by which the person knows the field, dotted for a part of it
    (`hires.factor`), or `None` where no field is at fault. The error never stands for a bug of the
    studio.
    """

    def __init__(self, field: str | None, sentence: str):
        super().__init__(field, sentence)
        self.field, self.sentence = field, sentence

    def __str__(self) -> str:
        return f"{self.field}: {self.sentence}" if self.field else self.sentence
