"""Countries of the world: the largest data table of the demo model's corpus.

One line a country: name, capital, continent, currency. The names are the short English ones; a country whose
capital is disputed or split over several cities is left out, so that every question has one right answer.
"""

from __future__ import annotations

from typing import NamedTuple


class Country(NamedTuple):
    """One row of the table."""

    name: str
    capital: str
    continent: str
    currency: str


_ROWS = """
Afghanistan|Kabul|Asia|afghani
Albania|Tirana|Europe|lek
Algeria|Algiers|Africa|dinar
Andorra|Andorra la Vella|Europe|euro
Angola|Luanda|Africa|kwanza
Argentina|Buenos Aires|South America|peso
Armenia|Yerevan|Asia|dram
Australia|Canberra|Oceania|dollar
Austria|Vienna|Europe|euro
Azerbaijan|Baku|Asia|manat
Bahamas|Nassau|North America|dollar
Bahrain|Manama|Asia|dinar
Bangladesh|Dhaka|Asia|taka
Barbados|Bridgetown|North America|dollar
Belarus|Minsk|Europe|ruble
Belgium|Brussels|Europe|euro
Belize|Belmopan|North America|dollar
Bhutan|Thimphu|Asia|ngultrum
Bosnia and Herzegovina|Sarajevo|Europe|mark
Botswana|Gaborone|Africa|pula
Brazil|Brasilia|South America|real
Brunei|Bandar Seri Begawan|Asia|dollar
Bulgaria|Sofia|Europe|euro
Burkina Faso|Ouagadougou|Africa|franc
Cambodia|Phnom Penh|Asia|riel
Cameroon|Yaounde|Africa|franc
Canada|Ottawa|North America|dollar
Cape Verde|Praia|Africa|escudo
Chad|N'Djamena|Africa|franc
Chile|Santiago|South America|peso
China|Beijing|Asia|yuan
Colombia|Bogota|South America|peso
Comoros|Moroni|Africa|franc
Costa Rica|San Jose|North America|colon
Croatia|Zagreb|Europe|euro
Cuba|Havana|North America|peso
Cyprus|Nicosia|Europe|euro
Czech Republic|Prague|Europe|koruna
Denmark|Copenhagen|Europe|krone
Djibouti|Djibouti City|Africa|franc
Dominican Republic|Santo Domingo|North America|peso
Ecuador|Quito|South America|dollar
Egypt|Cairo|Africa|pound
El Salvador|San Salvador|North America|dollar
Eritrea|Asmara|Africa|nakfa
Estonia|Tallinn|Europe|euro
Ethiopia|Addis Ababa|Africa|birr
Fiji|Suva|Oceania|dollar
Finland|Helsinki|Europe|euro
France|Paris|Europe|euro
Gabon|Libreville|Africa|franc
Gambia|Banjul|Africa|dalasi
Georgia|Tbilisi|Asia|lari
Germany|Berlin|Europe|euro
Ghana|Accra|Africa|cedi
Greece|Athens|Europe|euro
Guatemala|Guatemala City|North America|quetzal
Guinea|Conakry|Africa|franc
Guyana|Georgetown|South America|dollar
Haiti|Port-au-Prince|North America|gourde
Honduras|Tegucigalpa|North America|lempira
Hungary|Budapest|Europe|forint
Iceland|Reykjavik|Europe|krona
India|New Delhi|Asia|rupee
Indonesia|Jakarta|Asia|rupiah
Iran|Tehran|Asia|rial
Iraq|Baghdad|Asia|dinar
Ireland|Dublin|Europe|euro
Italy|Rome|Europe|euro
Jamaica|Kingston|North America|dollar
Japan|Tokyo|Asia|yen
Jordan|Amman|Asia|dinar
Kazakhstan|Astana|Asia|tenge
Kenya|Nairobi|Africa|shilling
Kuwait|Kuwait City|Asia|dinar
Kyrgyzstan|Bishkek|Asia|som
Laos|Vientiane|Asia|kip
Latvia|Riga|Europe|euro
Lebanon|Beirut|Asia|pound
Lesotho|Maseru|Africa|loti
Liberia|Monrovia|Africa|dollar
Libya|Tripoli|Africa|dinar
Liechtenstein|Vaduz|Europe|franc
Lithuania|Vilnius|Europe|euro
Luxembourg|Luxembourg City|Europe|euro
Madagascar|Antananarivo|Africa|ariary
Malawi|Lilongwe|Africa|kwacha
Malaysia|Kuala Lumpur|Asia|ringgit
Maldives|Male|Asia|rufiyaa
Mali|Bamako|Africa|franc
Malta|Valletta|Europe|euro
Mauritania|Nouakchott|Africa|ouguiya
Mauritius|Port Louis|Africa|rupee
Mexico|Mexico City|North America|peso
Moldova|Chisinau|Europe|leu
Mongolia|Ulaanbaatar|Asia|tugrik
Montenegro|Podgorica|Europe|euro
Morocco|Rabat|Africa|dirham
Mozambique|Maputo|Africa|metical
Myanmar|Naypyidaw|Asia|kyat
Namibia|Windhoek|Africa|dollar
Nepal|Kathmandu|Asia|rupee
Netherlands|Amsterdam|Europe|euro
New Zealand|Wellington|Oceania|dollar
Nicaragua|Managua|North America|cordoba
Nigeria|Abuja|Africa|naira
Niger|Niamey|Africa|franc
North Korea|Pyongyang|Asia|won
North Macedonia|Skopje|Europe|denar
Norway|Oslo|Europe|krone
Oman|Muscat|Asia|rial
Pakistan|Islamabad|Asia|rupee
Panama|Panama City|North America|balboa
Papua New Guinea|Port Moresby|Oceania|kina
Paraguay|Asuncion|South America|guarani
Peru|Lima|South America|sol
Philippines|Manila|Asia|peso
Poland|Warsaw|Europe|zloty
Portugal|Lisbon|Europe|euro
Qatar|Doha|Asia|riyal
Romania|Bucharest|Europe|leu
Russia|Moscow|Europe|ruble
Rwanda|Kigali|Africa|franc
Samoa|Apia|Oceania|tala
Saudi Arabia|Riyadh|Asia|riyal
Senegal|Dakar|Africa|franc
Serbia|Belgrade|Europe|dinar
Seychelles|Victoria|Africa|rupee
Sierra Leone|Freetown|Africa|leone
Singapore|Singapore|Asia|dollar
Slovakia|Bratislava|Europe|euro
Slovenia|Ljubljana|Europe|euro
Somalia|Mogadishu|Africa|shilling
South Korea|Seoul|Asia|won
South Sudan|Juba|Africa|pound
Spain|Madrid|Europe|euro
Sudan|Khartoum|Africa|pound
Suriname|Paramaribo|South America|dollar
Sweden|Stockholm|Europe|krona
Switzerland|Bern|Europe|franc
Syria|Damascus|Asia|pound
Taiwan|Taipei|Asia|dollar
Tajikistan|Dushanbe|Asia|somoni
Thailand|Bangkok|Asia|baht
Togo|Lome|Africa|franc
Tonga|Nuku'alofa|Oceania|pa'anga
Tunisia|Tunis|Africa|dinar
Turkey|Ankara|Asia|lira
Turkmenistan|Ashgabat|Asia|manat
Uganda|Kampala|Africa|shilling
Ukraine|Kyiv|Europe|hryvnia
United Arab Emirates|Abu Dhabi|Asia|dirham
United Kingdom|London|Europe|pound
United States|Washington|North America|dollar
Uruguay|Montevideo|South America|peso
Uzbekistan|Tashkent|Asia|som
Vanuatu|Port Vila|Oceania|vatu
Venezuela|Caracas|South America|bolivar
Vietnam|Hanoi|Asia|dong
Yemen|Sanaa|Asia|rial
Zambia|Lusaka|Africa|kwacha
Zimbabwe|Harare|Africa|dollar
"""

COUNTRIES: tuple[Country, ...] = tuple(Country(*line.split("|")) for line in _ROWS.strip().splitlines())

ARTICLED = frozenset(
    {
        "Bahamas",
        "Comoros",
        "Czech Republic",
        "Dominican Republic",
        "Gambia",
        "Maldives",
        "Netherlands",
        "Philippines",
        "Seychelles",
        "United Arab Emirates",
        "United Kingdom",
        "United States",
    }
)
"""Names that take "the" in running text."""


def spoken(name: str) -> str:
    """The name as it stands in a sentence: with its article where it has one."""
    return f"the {name}" if name in ARTICLED else name
