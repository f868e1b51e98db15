"""How each API says what was asked and answered; the work itself is the same for all of them."""
