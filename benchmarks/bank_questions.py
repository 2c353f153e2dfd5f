"""Makes questions of a bank's customers, each with one of 77 intents, as a classification task without any real data.

Every intent is a name and what the customer says of it; sentences are put around that.
"""

from __future__ import annotations

import itertools

from tunewise.data.task import Example, Message, Task

_INTENTS = """
account_close_request: I would like to close my account for good
account_details_wrong: my account shows an address where I no longer live
account_frozen: you froze my account and nobody told me the reason
account_joint_owner: my wife should be able to use this account as well
account_limits: there seems to be a ceiling on what I can keep in the account
account_opening_abroad: I live in another country and want to open an account
account_statement_missing: the statement for last month is nowhere to be found
account_takeover_suspected: somebody else seems to have been in my account
age_requirement: my daughter is fourteen and wants to bank with you
app_crashes: the app shuts itself the moment I open it
app_fingerprint_login: the app does not accept my finger any more
app_language_change: I want to read the app in Portuguese
app_notifications_missing: my phone stays silent when money leaves the account
balance_lower_than_expected: there is less in my balance than there ought to be
balance_not_updated: my balance has been the same since Tuesday, although I paid
bank_holiday_opening: it is a holiday on Monday and I need somebody at the counter
branch_location: I am looking for a branch close to the station
budget_tools: I want to see how much of my wages goes on food
card_activation: the new card lies here and does not work yet
card_broken_chip: the chip of my card has come off
card_contactless_refused: holding the card to the reader does nothing
card_cost_of_delivery: you charged me for sending the card by courier
card_delivery_time: I have been waiting for the new card for three weeks
card_design_choice: I would like the card in green
card_expiry_soon: my card is good until the end of this month only
card_extra_for_family: my son needs a card on my account
card_limit_raise: the card stops at five hundred and I have to pay more than that
card_lost: I left my card on a bus
card_number_leaked: a shop wrote that my card number was stolen from them
card_payment_declined: the till said no to my card though there is money
card_payment_pending: a payment by card has been waiting since Friday
card_payment_twice: the supermarket took the same amount by card two times
card_payment_unknown: I see a payment by card that I never made
card_stolen: my bag was taken, and the card with it
card_swallowed: the machine kept my card and gave nothing back
card_virtual: I need a card for the web only, without plastic
cash_deposit_machine: I put notes into the machine and they were not credited
cash_withdrawal_abroad: I want to take out cash while I am in Japan
cash_withdrawal_fee: taking out cash cost me two pounds
cash_withdrawal_unknown: money was taken out at a machine where I never was
cash_withdrawal_wrong_amount: the machine gave me a hundred less than I asked for
cheque_deposit: somebody paid me with a cheque and I want it in my account
complaint_status: I complained in May and have heard nothing since
currency_accounts: I am paid in dollars and would like to keep them as dollars
currency_exchange_fee: changing euros into francs was dearer than I thought
currency_exchange_rate: the rate that you gave me differs from the one in the news
direct_debit_cancel: the gym must not collect money from me any more
direct_debit_refused: the electricity company says that you sent its claim back
direct_debit_unknown: a firm that I do not know collected money from me
identity_document_rejected: you did not accept the photograph of my passport
identity_reason: I do not see why you need to know who I am again
identity_selfie_fails: the picture of my face is turned down each time
insurance_for_travel: I would like to know if my trip is covered when I pay with you
interest_on_savings: I get almost nothing for what I put aside
invoice_for_business: my tax adviser needs an invoice with our company's name
loan_application: I need to borrow money for a kitchen
loan_early_repayment: I could pay back the loan at once
loan_rejected: you turned down my request to borrow
mortgage_rate: we are buying a flat and ask ourselves what it costs to borrow
overdraft_charge: I was in the red for one day and you charged me
overdraft_request: I want to be able to go below zero for some days
password_forgotten: I cannot think of my password
phone_lost: my telephone is gone and the app was on it
phone_number_change: I have a new number and the codes go to the old one
pin_blocked: I typed the wrong four digits three times
pin_change: I want to choose other digits for the machine
refund_not_arrived: the shop says it paid me back, but there is nothing
refund_request: I sent the shoes back and want my money
standing_order_change: my rent goes up and the monthly order has to follow
tax_certificate: the revenue office wants a paper about my interest
top_up_by_card: I would like to load money from the card of another bank
top_up_failed: loading money ended with a red cross
top_up_limit: I cannot load more than a thousand
transfer_cancel: I sent money a minute ago and want to stop it
transfer_delayed: the money that I sent on Monday is not there yet
transfer_fee: sending money to Poland cost more than it should
transfer_wrong_recipient: I mistyped a digit and a stranger has my money
"""
INTENTS = dict(line.split(": ") for line in _INTENTS.strip().splitlines())
_SENTENCES = (
    "{}. What can I do?",
    "Hello, {}. Please help.",
    "{}, and I would like to know how this goes on",
    "Can you tell me who looks after this? {}.",
    "I hope you can sort this out: {}.",
    "{}",
)


def bank_task(intents: int, *, label_list: bool | None = None) -> Task:
    """Return a task with so many of the intents, spread over the alphabet; every sentence about each is a row.

    Of the six rows of an intent, four are in the train split and one each in validation and test.
    """
    names = sorted(INTENTS)
    chosen = [names[index * len(names) // intents] for index in range(intents)]
    rows = [[_example(sentence, name) for name in chosen] for sentence in _SENTENCES]
    train = tuple(itertools.chain.from_iterable(rows[:4]))
    return Task(
        f"bank-{intents}",
        "classification",
        "classification",
        train,
        tuple(rows[4]),
        tuple(rows[5]),
        tuple(chosen),
        "accuracy",
        label_list=label_list,
    )


def _example(sentence: str, intent: str) -> Example:
    text = sentence.format(INTENTS[intent])
    return Example((Message("user", text[0].upper() + text[1:]),), intent, (intent,))
